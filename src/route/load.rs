//! The load that a pod publishes, from its CPU usage and the load that the application reports.

use std::time::Duration;

/// CPU usage in percent of the pod's limit: `used` CPU time within `elapsed`, with `cores` cores
/// allowed. 0 to 100.
#[must_use]
pub fn cpu_percent(used: Duration, elapsed: Duration, cores: f64) -> f64 {
    const FULL: f64 = 100.0;
    let allowed = elapsed.as_secs_f64() * cores;
    if allowed > 0.0 {
        (used.as_secs_f64() / allowed * FULL).clamp(0.0, FULL)
    } else {
        0.0
    }
}

/// `cpu_factor` × CPU + (1 − `cpu_factor`) × reported load, as a whole number.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a load above 2^53 is rounded, and `as` saturates"
)]
pub fn weighted(cpu_factor: f64, cpu_percent: f64, reported: i64) -> i64 {
    if cpu_factor <= 0.0 {
        return reported;
    }
    (cpu_factor * cpu_percent + (1.0 - cpu_factor) * reported as f64).round() as i64
}

/// The number of cores that a cgroup v2 `cpu.max` allows: `quota period`, or `max period` for no
/// limit.
#[must_use]
pub fn cores_of_cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_ascii_whitespace();
    let quota: f64 = words.next()?.parse().ok()?;
    let period: f64 = words.next()?.parse().ok()?;
    let cores = quota / period;
    (cores.is_finite() && cores > 0.0).then_some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_a_share_of_the_limit() {
        let second = Duration::from_secs(1);
        assert!((cpu_percent(second, second, 1.0) - 100.0).abs() < 1e-9);
        assert!((cpu_percent(second, second, 4.0) - 25.0).abs() < 1e-9);
        assert!((cpu_percent(second * 9, second, 1.0) - 100.0).abs() < 1e-9);
        assert!(cpu_percent(second, Duration::ZERO, 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_weighted_load_follows_its_formula() {
        assert_eq!(weighted(0.7, 50.0, 10), 38);
        assert_eq!(weighted(0.0, 50.0, 10), 10);
        assert_eq!(weighted(1.0, 50.0, 10), 50);
        assert_eq!(weighted(0.0, 50.0, i64::MAX), i64::MAX);
        assert_eq!(weighted(0.7, 0.0, -10), -3);
    }

    #[test]
    fn cpu_max_is_parsed_as_the_kernel_writes_it() {
        assert_eq!(cores_of_cpu_max("200000 100000\n"), Some(2.0));
        assert_eq!(cores_of_cpu_max("50000 100000"), Some(0.5));
        for none in ["max 100000\n", "", "0 100000", "x y", "1 0"] {
            assert_eq!(cores_of_cpu_max(none), None, "{none:?}");
        }
    }
}
