//! The CPU usage of this pod: the process's CPU time relative to the pod's limit.
//!
//! The limit is the pod's, from cgroup v2, not the node's: the usage of a node does not show the
//! load of one pod on it.

use std::path::{Path, PathBuf};

use crate::clock::{Clock, Tick, process_cpu};
use crate::route::load::{cores_of_cpu_max, cpu_percent};

/// Measures CPU usage between samples.
#[derive(Debug)]
pub(super) struct CpuMeter {
    cores: f64,
    at: Tick,
    used: std::time::Duration,
}

impl CpuMeter {
    /// Starts measuring. Reads the limit once: Kubernetes restarts a container to change it.
    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            cores: cores_of_this_pod(Path::new("/")),
            at: clock.now(),
            used: process_cpu(),
        }
    }

    /// The percentage since the last sample.
    pub(super) fn sample(&mut self, clock: &Clock) -> f64 {
        let (now, used) = (clock.now(), process_cpu());
        let busy = used.saturating_sub(self.used);
        let percent = cpu_percent(busy, now.since(self.at), self.cores);
        (self.at, self.used) = (now, used);
        percent
    }
}

/// The cgroup's limit, or the number of cores of the machine.
fn cores_of_this_pod(root: &Path) -> f64 {
    let limit = std::fs::read_to_string(cpu_max(root)).ok();
    let limit = limit.as_deref().and_then(cores_of_cpu_max);
    limit.unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[allow(clippy::cast_precision_loss, reason = "no machine has 2^53 cores")]
        let cores = cores as f64;
        cores
    })
}

/// The file of this process's limit. Inside a container its own cgroup looks like the root.
fn cpu_max(root: &Path) -> PathBuf {
    let own = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    root.join("sys/fs/cgroup")
        .join(own.unwrap_or_default())
        .join("cpu.max")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use std::time::Duration;

    #[test]
    fn the_limit_is_the_pods_own() {
        let root = std::env::temp_dir().join(format!("podlink-cpu-{}", std::process::id()));
        let cgroup = root.join("sys/fs/cgroup/kubepods/pod1");
        std::fs::create_dir_all(&cgroup).unwrap();
        std::fs::create_dir_all(root.join("proc/self")).unwrap();
        std::fs::write(root.join("proc/self/cgroup"), "0::/kubepods/pod1\n").unwrap();
        std::fs::write(cgroup.join("cpu.max"), "150000 100000\n").unwrap();
        assert!((cores_of_this_pod(&root) - 1.5).abs() < 1e-9);
        std::fs::remove_dir_all(&root).unwrap();
        assert!(cores_of_this_pod(&root) >= 1.0);
    }

    #[test]
    fn a_sample_is_a_percentage() {
        let hand = ManualClock::default();
        let clock = Clock::Manual(hand.clone());
        let mut meter = CpuMeter::new(&clock);
        hand.advance(Duration::from_secs(1));
        let percent = meter.sample(&clock);
        assert!((0.0..=100.0).contains(&percent), "{percent}");
        // No time has passed: the usage is 0, without a division by zero.
        assert!(meter.sample(&clock).abs() < 1e-9);
    }
}
