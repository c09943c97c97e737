use super::super::compression::decompressed;
use super::super::compression::tests::{gzip, zstd};
use super::super::members::{BLOCK_BYTES, pax_record};
use super::*;
use proptest::prelude::*;
use tar::{EntryType, Header};

pub(crate) fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in members {
        let mut header = Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *data).expect("to memory");
    }
    builder.into_inner().expect("to memory")
}

fn read(bytes: &[u8]) -> (Vec<RawRecord>, Option<String>) {
    let (found, error, _) = read_with(bytes, None);
    (found, error)
}

fn options(image_key: Option<&str>) -> ReadOptions {
    let image_key = image_key.map(str::to_owned);
    ReadOptions { image_key, id_key: None, max_image_bytes: 5000, max_page_bytes: 1 << 20 }
}

/// The records, the error that ended the archive early, and the skipped members.
fn read_with(bytes: &[u8], image_key: Option<&str>) -> (Vec<RawRecord>, Option<String>, String) {
    let skips = Skips::default();
    let mut reader = TarRecords::new(bytes, &options(image_key), skips.clone());
    let mut found = Vec::new();
    let skipped = || skips.counts().to_string();
    loop {
        match reader.next_record() {
            Ok(Some(record)) => found.push(record),
            Ok(None) => return (found, None, skipped()),
            Err(error) => return (found, Some(error.to_string()), skipped()),
        }
    }
}

fn ids(found: &[RawRecord]) -> Vec<&str> {
    found.iter().map(|record| record.image_id.as_str()).collect()
}

#[test]
fn image_members_are_records_and_others_are_not() {
    let tar = archive(&[
        ("a.jpg", b"one"),
        ("a.json", b"{}"),
        ("dir.v1/b.PNG", b"two"),
        ("dir.v1/b.cls", b"3"),
        ("./c.left.webp", b"three"),
        ("c.right.webp", b"four"),
        ("._a.jpg", b"attributes"),
    ]);
    let (found, error, skipped) = read_with(&tar, None);
    assert_eq!(error, None);
    assert_eq!(ids(&found), ["a", "dir.v1/b", "c.left", "c.right"]);
    assert_eq!(found[3].content, Ok(Bytes::from_static(b"four")));
    assert_eq!(found[2].member.as_deref(), Some("c.left.webp"));
    assert_eq!(skipped, "1 cls, 1 hidden, 1 json");
}

/// Bytes that begin like a PNG.
fn png() -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n", &[7; 4990][..]].concat()
}

#[test]
fn an_image_is_a_record_under_any_name() {
    let image = png();
    let names = ["a.jpg", "b.jfif", "c.heic", "d.img", "e", "f.json", "_DSC0001.JPG", "_x/g.txt", "h.zip"];
    let members: Vec<_> = names.iter().map(|name| (*name, &image[..])).collect();
    let (found, error, skipped) = read_with(&archive(&members), None);
    assert_eq!((error, skipped.as_str()), (None, ""));
    assert_eq!(ids(&found), ["a", "b", "c", "d", "e", "f", "_DSC0001", "_x/g", "h"]);
    assert!(found.iter().all(|record| record.content.as_ref().is_ok_and(|bytes| *bytes == image)));
    // text under the name of an image, or under an unknown name, is a record too
    let text =
        [("a.heic", &b"text"[..]), ("b.unknown", b"text"), ("c", b"text"), ("d.txt", b"text"), ("e", b"")];
    let (found, _, skipped) = read_with(&archive(&text), None);
    assert_eq!((ids(&found), skipped.as_str()), (vec!["a", "b", "c"], "1 empty, 1 txt"));
    let long = [b"\xff\xd8\xff", &[0; 6000][..]].concat();
    let (found, _, _) = read_with(&archive(&[("a.txt", &long), ("b.jpg", b"next")]), None);
    let reasons: Vec<_> = found.iter().map(|r| r.content.as_ref().err().map(|e| e.status)).collect();
    assert_eq!(reasons, [Some(Status::TooLarge), None]);
}

#[test]
fn members_with_colliding_stems_get_distinct_ids() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["p.2023.01.02.jpg", "p.2023.01.03.jpg"], &["p.2023.01.02", "p.2023.01.03"]),
        (&["0.jpg", "0.mask.png", "0.left.jpg"], &["0", "0.mask", "0.left"]),
        (&["a.jpg", "b.jpg", "./a.png", "a.gif"], &["a", "b", "a.png", "a.gif"]),
        (&["a.jpg", "a.png", "a.png.jpg", "d/a.jpg"], &["a", "a.png", "a.png.jpg", "d/a"]),
        (&["a.jpg.jpg", "a.png", "a.jpg"], &["a.jpg", "a", "a.jpg#2"]),
        (&["a.jpg", "a"], &["a", "a#2"]),
        (&["a.jpg", "a.jpg", "a.jpg", "./a.jpg"], &["a", "a.jpg", "a.jpg#2", "a.jpg#3"]),
        (&["a.jpg#2.png", "a.jpg", "a.jpg", "a.jpg"], &["a.jpg#2", "a", "a.jpg", "a.jpg#3"]),
    ];
    for (names, expected) in cases {
        let members: Vec<_> = names.iter().map(|name| (*name, &b"x"[..])).collect();
        assert_eq!(ids(&read(&archive(&members)).0), expected, "{names:?}");
    }
}

#[test]
fn samples_with_repeated_keys_get_distinct_ids() {
    let tar = archive(&[
        ("a.jpg", b"one"),
        ("b.txt", b"none"),
        ("a.jpg", b"two"),
        ("b.txt", b"none"),
        ("a.jpg", b"three"),
    ]);
    let (found, error, _) = read_with(&tar, Some("jpg"));
    assert_eq!((ids(&found), error), (vec!["a", "b", "a.jpg", "b#2", "a.jpg#2"], None));
}

#[test]
fn many_members_with_one_name_are_numbered_without_a_search() {
    let mut all = Ids::default();
    let (count, mut seen) = (100_000, HashSet::new());
    for _ in 0..count {
        assert!(seen.insert(all.of_member("a.jpg")));
    }
    assert!(seen.contains(&format!("a.jpg#{}", count - 1)));
    assert_eq!(all.numbers.len(), 1);
}

#[test]
fn the_number_of_remembered_ids_is_bounded() {
    let mut all = Ids::default();
    for n in 0..IDS_REMEMBERED {
        all.of_member(&format!("{n}.jpg"));
        all.of_member(&format!("{n}.jpg"));
        all.of_member(&format!("{n}.jpg"));
    }
    assert!(all.taken.len() + all.numbers.len() <= IDS_REMEMBERED);
}

/// A member of type `kind` that holds `data`.
fn typed(kind: u8, name: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(data.len() as u64);
    header.as_mut_bytes()[156] = kind;
    header.set_cksum();
    let padding = vec![0; data.len().next_multiple_of(BLOCK_BYTES) - data.len()];
    [&header.as_bytes()[..], data, &padding].concat()
}

#[test]
fn a_trailing_slash_in_a_name_hides_no_data() {
    let tar = [
        typed(b'5', "d/", b""),
        typed(b'0', "e/", b""),
        typed(b'0', "x/", b"image"),
        typed(0, "d/h.jpg/", b"image"),
        typed(b'0', "a.jpg", b"image"),
    ];
    let (found, error, skipped) = read_with(&tar.concat(), None);
    assert_eq!((ids(&found), error, skipped.as_str()), (vec!["x/", "d/h.jpg/", "a"], None, ""));
    assert!(found.iter().all(|record| record.content == Ok(Bytes::from_static(b"image"))));
}

#[test]
fn a_member_of_an_undefined_type_is_a_file_and_a_special_one_is_counted() {
    let tar = [
        typed(b'Z', "a.jpg", b"image"),
        typed(b'9', "b.jpg", b"image"),
        typed(b'z', "c.txt", b"text"),
        typed(b'V', "label", b""),
        typed(b'D', "folder/", b"Yd.jpg\0"),
        typed(b'A', "e.jpg", b"rights"),
        typed(b'M', "f.jpg", b"rest of an image"),
        typed(b'6', "g.jpg", b""),
    ];
    for key in [None, Some("jpg")] {
        let (found, error, skipped) = read_with(&tar.concat(), key);
        assert_eq!((&ids(&found)[..2], error), (&["a", "b"][..], None));
        assert_eq!(skipped, "5 special file, 1 txt");
    }
}

#[test]
fn a_member_without_an_extension_is_shown_as_such() {
    let (found, _, _) = read_with(&archive(&[("a", b"image"), ("b.jpg", b"image")]), Some("jpg"));
    let reason = found[0].content.as_ref().expect_err("no member jpg");
    assert!(reason.error.ends_with("it has: (no extension)"), "{}", reason.error);
}

#[test]
fn names_that_are_not_utf_8_stay_distinct() {
    let named = |name: &[u8]| {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let tar = [named(b"\xe9.jpg"), named(b"\xe8.jpg"), named(b"\\xE8.jpg"), named(b"a\nb.jpg")].concat();
    let (found, _) = read(&tar);
    assert_eq!(ids(&found), [r"\xE9", r"\xE8", r"\x5CxE8", r"a\x0Ab"]);
}

#[test]
fn an_image_key_chooses_among_a_samples_members() {
    let tar = archive(&[
        ("0.jpg", b"image 0"),
        ("0.mask.png", b"mask 0"),
        ("0.json", b"{}"),
        ("d/1.mask.png", b"mask 1"),
        ("d/._1.jpg", b"hidden"),
        ("d/1.JPG", b"image 1"),
        ("2.png", b"image 2"),
        ("2.txt", b"text"),
        ("3.cls", b"3"),
    ]);
    let read = |key| {
        let (found, error, skipped) = read_with(&tar, Some(key));
        assert_eq!(error, None);
        let found = found.into_iter().map(|RawRecord { image_id, content, .. }| {
            let content = content.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            (image_id, content.map_err(|rejected| (rejected.status, rejected.error)))
        });
        (found.collect::<Vec<_>>(), skipped)
    };
    let image = |id: &str, content: &str| (id.to_owned(), Ok(content.to_owned()));
    let missing = |id: &str, error: &str| (id.to_owned(), Err((Status::MissingImage, error.to_owned())));
    let (found, skipped) = read("jpg");
    let expected = [
        image("0", "image 0"),
        image("d/1", "image 1"),
        missing("2", "the sample has no member jpg, which input.image_key names; it has: png, txt"),
        missing("3", "the sample has no member jpg, which input.image_key names; it has: cls"),
    ];
    assert_eq!(found, expected);
    assert_eq!(skipped, "3 other image, 1 cls, 1 hidden, 1 json, 1 txt");
    let (found, _) = read("jpg;png");
    assert_eq!(found[..3], [image("0", "image 0"), image("d/1", "image 1"), image("2", "image 2")]);
    // the preferred member comes after another one
    let (found, _) = read("jpg; mask.png");
    assert_eq!(found[1], image("d/1", "image 1"));
    assert_eq!(read("mask.png;jpg").0[..2], [image("0", "mask 0"), image("d/1", "mask 1")]);
}

#[test]
fn a_cut_after_the_image_of_a_sample_keeps_the_image() {
    let tar = archive(&[("0.jpg", b"image 0"), ("0.json", b"{}"), ("1.jpg", &[7; 700])]);
    let (found, error, _) = read_with(&tar[..4 * BLOCK_BYTES + BLOCK_BYTES + 100], Some("jpg"));
    assert_eq!(ids(&found), ["0"]);
    assert!(error.expect("cut").contains("1.jpg"));
}

#[test]
fn long_gnu_and_pax_names_are_complete() {
    let long = format!("{}/image.jpg", "folder".repeat(40));
    let mut builder = tar::Builder::new(archive(&[(long.as_str(), b"gnu")]));
    builder.get_mut().truncate(3 * BLOCK_BYTES + BLOCK_BYTES);
    let extensions = [("path", long.as_bytes()), ("mtime", b"1.5")];
    builder.append_pax_extensions(extensions).expect("to memory");
    let mut header = Header::new_ustar();
    header.set_size(3);
    header.set_path("short.bin").expect("short");
    header.set_cksum();
    builder.append(&header, &b"pax"[..]).expect("to memory");
    let (found, error) = read(&builder.into_inner().expect("to memory"));
    assert_eq!(error, None);
    let key = long.strip_suffix(".jpg").expect("suffix");
    assert_eq!(ids(&found), [key, &long]);
    assert_eq!(found[1].content, Ok(Bytes::from_static(b"pax")));
}

#[test]
fn empty_and_too_large_members_are_rejected_and_the_next_one_is_read() {
    let tar = archive(&[("e.jpg", b""), ("l.jpg", &[1; 5001]), ("o.jpg", &[1; 5000])]);
    let (found, error) = read(&tar);
    assert_eq!(error, None);
    let reasons: Vec<_> = found.iter().map(|r| r.content.as_ref().err().map(|e| e.status)).collect();
    assert_eq!(reasons, [Some(Status::Empty), Some(Status::TooLarge), None]);
}

#[test]
fn a_link_to_an_image_is_a_record_without_an_image() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Link);
    header.set_size(0);
    builder.append_link(&mut header, "b.jpg", "a.jpg").expect("to memory");
    let (found, _) = read(&builder.into_inner().expect("to memory"));
    assert_eq!(found[0].content.as_ref().expect_err("link").status, Status::MissingImage);
}

#[test]
fn the_size_of_a_link_hides_no_member() {
    let link = |kind: EntryType, body: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path("b.jpg").expect("short");
        header.set_link_name("a.jpg").expect("short");
        header.set_size(700);
        header.set_cksum();
        let (before, after) = (archive(&[("a.jpg", b"one")]), archive(&[("c.jpg", b"three")]));
        read(&[&before[..1024], header.as_bytes(), body, &after].concat())
    };
    for (kind, body) in [(EntryType::Link, &[][..]), (EntryType::Link, &[7; 1024]), (EntryType::Symlink, &[])]
    {
        let (found, error) = link(kind, body);
        assert_eq!((ids(&found), error), (vec!["a", "b", "c"], None), "{kind:?}");
    }
}

#[test]
fn a_cut_inside_a_member_names_it_and_keeps_the_records_before_it() {
    let tar = archive(&[("a.jpg", &[1; 700]), ("b.jpg", &[2; 700])]);
    let second = 512 + 1024;
    let (found, error) = read(&tar[..second + 512 + 100]);
    assert_eq!(ids(&found), ["a"]);
    assert_eq!(error.expect("cut"), "the file ends inside b.jpg: 100 of its 700 bytes are there");
    let (found, error) = read(&tar[..second + 100]);
    assert_eq!(ids(&found), ["a"]);
    assert!(error.expect("cut").contains("member's header"));
    // the member is complete, its padding is cut
    let (found, error) = read(&tar[..512 + 700]);
    assert_eq!(ids(&found), ["a"]);
    assert!(error.is_some());
}

#[test]
fn a_missing_end_mark_is_not_damage() {
    let tar = archive(&[("a.jpg", b"one")]);
    let (found, error) = read(&tar[..1024]);
    assert_eq!((ids(&found), error), (vec!["a"], None));
}

#[test]
fn members_after_an_end_mark_are_read_and_a_hole_is_damage() {
    let (one, two) = (archive(&[("a.jpg", b"one")]), archive(&[("b.jpg", b"two")]));
    let (found, error) = read(&[&one[..], &[0; 10_240], &two].concat());
    assert_eq!((ids(&found), error), (vec!["a", "b"], None));
    // zeros in place of a header and a part of its member
    let mut holed = archive(&[("a.jpg", b"one"), ("b.jpg", &[7; 1000]), ("c.jpg", b"three")]);
    holed[1024..2048].fill(0);
    let (found, error) = read(&holed);
    assert_eq!(ids(&found), ["a"]);
    let error = error.expect("damaged");
    assert!(error.starts_with("damaged") && error.contains("at byte 2048"), "{error}");
    // other data, such as a signature
    let (found, error) = read(&[&one[..], &[7; 2000]].concat());
    assert_eq!((ids(&found), error), (vec!["a"], None));
    let (found, error) = read(&[&one[..], b"\n"].concat());
    assert_eq!((ids(&found), error), (vec!["a"], None));
    // one block of zeros is not an end mark
    let (found, error) = read(&[&one[..1024], &[0; 512], &[7; 2000]].concat());
    assert!(ids(&found) == ["a"] && error.is_some());
    // the padding of a block device may end inside a block
    let (found, error) = read(&[&one[..], &[0; 100]].concat());
    assert_eq!((ids(&found), error), (vec!["a"], None));
}

#[test]
fn a_pax_value_may_hold_line_breaks_and_an_empty_one_is_ignored() {
    let named = |extensions: [(&str, &[u8]); 2]| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(extensions).expect("to memory");
        builder.into_inner().map(|tar| [&tar[..1024], &archive(&[("a.jpg", b"one")])].concat())
    };
    let odd = named([("SCHILY.xattr.user.x", b"a\n\nb"), ("path", b"long/b.jpg")]).expect("to memory");
    assert_eq!(ids(&read(&odd).0), ["long/b"]);
    let empty = named([("path", b""), ("size", b"")]).expect("to memory");
    assert_eq!(ids(&read(&empty).0), ["a"]);
    for malformed in [&b"99 path=x\n"[..], b"path=x", b"9 path=x", b"0 path=x\n", b"8 pathx\n", b"1 "] {
        assert_eq!(pax_record(malformed), None);
    }
}

#[test]
fn a_file_that_is_not_an_archive_is_refused() {
    assert!(read(&[b'x'; 2000]).1.expect("error").starts_with("not a tar archive"));
    assert!(read(b"hello").1.is_some());
    assert!(read(b"").1.is_some());
    let pdf = read(&[b"%PDF-1.7 ", &[b'x'; 2000][..]].concat()).1;
    assert_eq!(pdf.as_deref(), Some("not a tar archive: it is a PDF document"));
}

#[test]
fn an_archive_with_a_damaged_first_header_is_called_damaged() {
    // one of the names begins like an image
    for name in ["a.jpg", "GIF89a.jpg"] {
        let mut tar = archive(&[(name, b"one"), ("b.jpg", b"two")]);
        tar[148..156].copy_from_slice(b"0000000\0");
        let error = read(&tar).1.expect("damaged");
        assert_eq!(error, "damaged: the checksum of the header at byte 0 does not hold");
        let error = read(&tar[..400]).1.expect("damaged");
        assert_eq!(error, "damaged: the file is shorter than a member's header");
    }
}

#[test]
fn a_damaged_header_ends_the_shard_and_says_where() {
    let mut tar = archive(&[("a.jpg", b"one"), ("b.jpg", b"two")]);
    tar[1024] ^= 1;
    let (found, error) = read(&tar);
    assert_eq!(ids(&found), ["a"]);
    assert_eq!(error.expect("damaged"), "damaged: the checksum of the header at byte 1024 does not hold");
}

#[test]
fn a_long_name_of_a_gigabyte_is_refused() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let message = read(header.as_bytes()).1.expect("refused");
    assert!(message.contains("limit is 1048576"), "{message}");
}

#[test]
fn records_before_a_cut_in_a_compressed_stream_are_read() {
    // members that differ, so that half of the stream holds about half of them
    let images: Vec<Vec<u8>> = (0..600_u32)
        .map(|n| (0..900_u32).map(|m| ((n * 900 + m).wrapping_mul(2_654_435_761) >> 13) as u8).collect())
        .collect();
    let members: Vec<(&str, &[u8])> = images.iter().map(|image| ("a.jpg", &image[..])).collect();
    let tar = archive(&members);
    for packed in [gzip(&tar), zstd(&tar)] {
        let mut reader = {
            let half = decompressed(&packed[..packed.len() / 2]).expect("head");
            TarRecords::new(half, &options(None), Skips::default())
        };
        let mut whole = 0;
        let error = loop {
            match reader.next_record() {
                Ok(record) => whole += record.map(|_| 1).expect("no end"),
                Err(error) => break error,
            }
        };
        assert!(whole > 100, "{whole}: {error}");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read(&bytes);
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0_usize..100_000, value in any::<u8>(), repair in any::<bool>()) {
        let long = format!("{}.jpg", "x".repeat(150));
        let mut tar = archive(&[("a.jpg", &[1; 700]), (long.as_str(), &[2; 10]), ("c.jpg", b"")]);
        let at = at % tar.len();
        tar[at] = value;
        if repair {
            // make the checksum of the changed header valid
            let start = at / BLOCK_BYTES * BLOCK_BYTES;
            let mut header = Header::from_byte_slice(&tar[start..start + BLOCK_BYTES]).clone();
            header.set_cksum();
            tar[start..start + BLOCK_BYTES].copy_from_slice(header.as_bytes());
        }
        read(&tar);
    }
}
