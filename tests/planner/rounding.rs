//! Surge and unavailability come out as Kubernetes rounds them.

use evenkeel::spec::{CountOrPercent, Rollout};

fn bounds(surge: Option<&str>, unavailable: Option<&str>, desired: u32) -> (u32, u32) {
    let parse = |text: &str| text.parse::<CountOrPercent>().expect("a count or a share");
    let rollout =
        Rollout { max_surge: surge.map(parse), max_unavailable: unavailable.map(parse), ..Rollout::default() };
    rollout.bounds(desired)
}

#[test]
fn the_published_vectors_of_kubernetes_hold() {
    // Where Kubernetes' own test leaves a value out it means 0, the default being filled in before.
    for (surge, unavailable, desired, expected) in [
        ("0%", "0%", 0, (0, 1)),
        ("39%", "39%", 10, (4, 3)),
        ("0", "39%", 10, (0, 3)),
        ("39%", "0", 10, (4, 0)),
        ("0", "0", 10, (0, 1)),
        ("3", "2", 1, (3, 2)),
        ("100%", "100%", 3, (3, 3)),
    ] {
        assert_eq!(bounds(Some(surge), Some(unavailable), desired), expected, "{surge} {unavailable} of {desired}");
    }
}

#[test]
fn a_quarter_each_is_the_default_for_zero_to_ten_replicas() {
    let all: Vec<(u32, u32)> = (0..=10).map(|desired| bounds(None, None, desired)).collect();
    let surge_up = [0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3];
    let unavailable_down = [1, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2];
    assert_eq!(all, surge_up.into_iter().zip(unavailable_down).collect::<Vec<_>>());
}
