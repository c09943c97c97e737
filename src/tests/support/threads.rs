//! CPU time of the threads of a running process, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::Duration;

/// One thread of a process.
#[derive(Debug, Clone)]
pub struct Thread {
    pub name: String,
    /// CPU time, including system time. Exact while the thread waits.
    pub busy: Duration,
}

/// The threads of `process` by their ids; none once it has ended.
pub fn of(process: &Child) -> BTreeMap<i32, Thread> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).into_iter().flatten().flatten();
    let known = tasks.filter_map(|task| {
        let read = |name| fs::read_to_string(task.path().join(name)).ok();
        let name = read("comm")?.trim_end().to_owned();
        // the first field is in nanoseconds; `stat` counts ticks of 10 ms and misses short work
        let busy = read("schedstat")?.split_whitespace().next()?.parse().map(Duration::from_nanos).ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, Thread { name, busy }))
    });
    known.collect()
}
