//! Surge and unavailability come out as Kubernetes rounds them.

use evenkeel::spec::{CountOrPercent, Rollout, ServiceSpec};

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

#[test]
fn the_old_one_ends_first_where_old_and_new_would_share_what_one_holds() {
    let port = "port_mappings: [{container_port: 80, host_port: 8080}]";
    let named = "storage: [{type: named, name: db, target: /data}]";
    let shared = "storage: [{type: named, name: db, target: /data, readonly: true}]";
    let workspace = "storage: [{type: workspace}]";
    for (fields, rollout, desired, expected) in [
        ("", "", 1, (1, 0)),
        ("", "strategy: recreate", 4, (0, 1)),
        (port, "", 1, (0, 1)),
        (port, "max_surge: 2, max_unavailable: 0", 8, (0, 1)),
        (port, "", 8, (0, 2)),
        (named, "", 1, (0, 1)),
        (named, "max_unavailable: 0", 1, (0, 1)),
        (named, "max_surge: 1", 1, (1, 0)),
        (named, "max_surge: 0", 1, (0, 1)),
        (named, "", 2, (1, 0)),
        (shared, "", 1, (1, 0)),
        (workspace, "", 1, (0, 1)),
        (workspace, "", 8, (0, 2)),
        (workspace, "max_surge: 25%", 8, (2, 2)),
        ("storage: [{type: anonymous, target: /data}, {type: bind, source: /srv, target: /srv}]", "", 1, (1, 0)),
    ] {
        let yaml = format!("image: {{name: nginx}}\nrollout: {{{rollout}}}\n{fields}");
        let spec: ServiceSpec = serde_yaml::from_str(&yaml).expect("a service");
        assert_eq!(spec.rollout_bounds(desired), expected, "{desired} of {yaml}");
    }
}
