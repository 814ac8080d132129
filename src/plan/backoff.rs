//! How long to wait before trying again: doubling, bounded, spread by name.

use std::time::Duration;

/// Wait before the second restart in a row where the spec names none: kubelet's crash loop back-off. The first
/// restart is immediate.
pub const RESTART_DELAY: Duration = Duration::from_secs(10);

/// Shortest wait before the second restart in a row, whatever the spec names: Docker's first wait, and systemd's only one. A
/// shorter one would hardly grow, and none at all never would.
pub const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);

/// Longest wait between restarts: kubelet's crash loop back-off. A longer `restart_policy.delay` counts as written.
pub const RESTART_DELAY_MAX: Duration = Duration::from_secs(300);

/// A run of this length ends a series of restarts: kubelet forgets its back-off after 10 minutes.
pub const STABLE_RUN: Duration = Duration::from_secs(600);

/// An instance that was restarted after a short run counts as available once it has run for this long, so that a
/// crash loop whose process is ready for an instant does not advance a rollout. Docker takes a run of 10 s as a
/// successful start.
pub const PROVEN_RUN: Duration = Duration::from_secs(10);

/// During a rollout, an instance that nothing checks counts as available once it has run for this long, so that a program
/// which can't start takes no other's place before it has crashed: most that can't do so within a second. A rollout that asks
/// for `health` or `rollout.min_ready` goes by those.
pub const PROBATION: Duration = crate::spec::UNCHECKED_RUN;

/// Wait after the first failed runtime call for a slot; short because most failures (a busy engine) pass.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Longest wait between failed runtime calls for a slot: kubelet's longest back-off for image pulls.
pub const RETRY_DELAY_MAX: Duration = Duration::from_secs(300);

/// Up to this share of a wait is added to it, by name, so that instances that failed together do not come back
/// together. A tenth spreads them and still surprises nobody who expects the plain number.
const JITTER_PERCENT: u32 = 10;

/// The wait after `count` failures in a row: `first` doubled for each after the first, at most `longest`, plus up
/// to a tenth that depends on `name` alone. Zero for a count of 0.
pub fn backoff(first: Duration, longest: Duration, count: u32, name: &str) -> Duration {
    let Some(doublings) = count.checked_sub(1) else { return Duration::ZERO };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let wait = first.saturating_mul(factor).min(longest);
    wait.saturating_add(jitter(wait, name))
}

/// Between nothing and [`JITTER_PERCENT`] of `wait`, in steps of a hundredth of a percent.
fn jitter(wait: Duration, name: &str) -> Duration {
    let steps = (fnv1a(name.as_bytes()) % u64::from(JITTER_PERCENT * 100 + 1)) as u32;
    (wait / 10_000).saturating_mul(steps)
}

/// FNV-1a, 64 bits: tiny, and the same on every machine and in every release, which std's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_from_ten_seconds_to_five_minutes_with_a_tenth_of_jitter_at_most() {
        for (count, seconds) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (7, 300), (u32::MAX, 300)] {
            for name in ["demo_web_0_3f2a9c1d_1", "demo_web_1_3f2a9c1d_1", "a", ""] {
                let wait = backoff(RESTART_DELAY, RESTART_DELAY_MAX, count, name);
                let plain = Duration::from_secs(seconds);
                assert!(wait >= plain && wait <= plain + plain / 10, "{count} {name}: {wait:?}");
            }
        }
        assert_eq!(backoff(RESTART_DELAY, RESTART_DELAY_MAX, 0, "a"), Duration::ZERO);
    }

    #[test]
    fn the_jitter_depends_on_the_name_alone_and_spreads() {
        let wait = |name: &str| backoff(RESTART_DELAY, RESTART_DELAY_MAX, 1, name);
        assert_eq!(wait("demo_web_0_3f2a9c1d_1"), wait("demo_web_0_3f2a9c1d_1"));
        let distinct: std::collections::BTreeSet<_> = (0..50).map(|slot| wait(&format!("demo_web_{slot}"))).collect();
        assert!(distinct.len() > 40, "{distinct:?}");
    }

    #[test]
    fn fnv1a_has_its_published_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
