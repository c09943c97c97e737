//! Hundreds of runs that are killed, shared, or given faulty stores. `scripts/torture.sh` starts this program.
//!
//!     torture [--seed N] [--kills N] [PART...]
//!
//! Parts: kills, scorer, faults, zombies, two-runs, workers, endings, listing, troubles, cost. Each part prints one
//! line per claim, and the program ends with a table of all claims. The seed determines everything random.

#[path = "../support/example.rs"]
mod example;
#[path = "../support/gcs/mod.rs"]
mod gcs;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/mod.rs"]
mod support;

mod cost;
mod endings;
mod every_fault;
mod kills;
mod listing;
mod scorer;
mod trial;
mod troubles;
mod two_runs;
mod workers;
mod zombies;

use std::process::ExitCode;

/// Name and function of a part.
type Part = (&'static str, fn(&mut Torture));

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut seed, mut kills, mut wanted) = (1, 200, Vec::new());
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).expect("a number");
        match argument.as_str() {
            "--seed" => seed = number(),
            "--kills" => kills = number(),
            part => wanted.push(part.to_owned()),
        }
    }
    let mut torture = Torture { random: Random::new(seed), kills, rows: Vec::new() };
    let parts: [Part; 10] = [
        ("kills", Torture::kills),
        ("scorer", Torture::scorer),
        ("faults", Torture::faults),
        ("zombies", Torture::zombies),
        ("two-runs", Torture::two_runs),
        ("workers", Torture::workers),
        ("endings", Torture::endings),
        ("listing", Torture::listing),
        ("troubles", Torture::troubles),
        ("cost", Torture::cost),
    ];
    if let Some(unknown) = wanted.iter().find(|wanted| parts.iter().all(|(name, _)| name != wanted)) {
        let names: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
        eprintln!("unknown part {unknown}, expected one of {}", names.join(", "));
        return ExitCode::from(2);
    }
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            part(&mut torture);
        }
    }
    println!("\n| what | figure | held |\n| --- | --- | --- |");
    for (what, figure, held) in &torture.rows {
        println!("| {what} | {figure} | {} |", if *held { "yes" } else { "NO" });
    }
    println!("\nseed {seed}");
    ExitCode::from(u8::from(torture.rows.iter().any(|(_, _, held)| !held)))
}

/// Marsaglia's 64-bit xorshift.
struct Random(u64);

impl Random {
    /// Steele and Vigna's splitmix64, so that similar seeds give unrelated sequences.
    fn new(seed: u64) -> Self {
        let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((state ^ (state >> 31)).max(1))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

struct Torture {
    random: Random,
    kills: u64,
    /// For each claim, what was tried, the figure, and whether the claim held.
    rows: Vec<(String, String, bool)>,
}

impl Torture {
    fn row(&mut self, what: impl Into<String>, figure: impl Into<String>, held: bool) {
        let (what, figure) = (what.into(), figure.into());
        println!("{} {what}: {figure}", if held { "held" } else { "FAILED" });
        self.rows.push((what, figure, held));
    }
}
