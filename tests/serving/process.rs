//! What a process takes, by what Linux tells of it.

use std::time::Duration;

/// Processor time of a process so far, of all its threads.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // after the name in brackets, which may hold anything: fields 14 and 15 are its
    // time in hundredths of a second
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let fields = fields.split(' ').skip(11).take(2);
    let ticks: u64 = fields
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// A line of its status in MiB: `VmRSS`, what is in memory, or `VmHWM`, the most that
/// was.
pub fn memory(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim_start_matches(':').trim().strip_suffix(" kB"));
    let kib: f64 = kib.expect("a line").parse().expect("a number");
    kib / 1024.0
}
