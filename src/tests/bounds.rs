//! Memory of runs over files that were made to take much: never more than the bound that sluice prints.
//!
//! Each case writes its file into `in` and calls [`peak::run_within_bound`]. Keys that the bound does not depend on are
//! set as low as the case allows, so that the bound is a tight one.

mod support;

use std::fs;
use std::io::Write;

use support::*;

/// Settings that leave little beside what a case is about.
const SMALL: [&str; 8] = [
    "--set",
    "input.look_ahead=1",
    "--set",
    "input.max_image_bytes=1000000",
    "--set",
    "preprocess.max_pixels=1000000",
    "--set",
    "preprocess.threads=1",
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("to memory");
    encoder.finish().expect("to memory")
}

#[test]
fn a_tar_of_one_member_without_end_stays_within_the_bound() {
    let bench = Bench::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("a.png").expect("a name");
    header.set_size(1 << 43);
    header.set_mode(0o644);
    header.set_cksum();
    let zeros = gzip(&vec![0; 16 << 20]);
    let bomb = [gzip(header.as_bytes()), zeros.repeat(70)].concat();
    fs::write(bench.path("in/bomb.tar.gz"), bomb).expect("file");
    assert_code(&peak::run_within_bound(&bench, "out", &SMALL), 5);
}
