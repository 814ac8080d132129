//! Many files together.

use std::path::{Path, PathBuf};

use evenkeel::spec::{ImageRef, Merged, RuntimeKind, Storage, merge, parse};

fn merged(files: &[(&str, &str)]) -> Merged {
    let files: Vec<_> = files.iter().map(|(name, text)| (PathBuf::from(name), parse(text))).collect();
    merge(&files)
}

fn problems(merged: &Merged) -> Vec<String> {
    merged.problems.iter().map(|(file, problem)| format!("{}:{problem}", file.display())).collect()
}

const SHOP: &str =
    "version: v1\ndeployment: shop\nruntime: docker\nprune: never\nservices:\n  web:\n    image: { name: nginx }\n";

#[test]
fn services_join_their_deployment_from_other_files() {
    let search = "service: search\ndeployment: shop\nimage: { name: x }\nruntime: sandbox\ndepends: [{ service: web }]";
    let merged = merged(&[("/s/a/search.yaml", search), ("/s/shop.yaml", SHOP)]);
    assert_eq!(problems(&merged), Vec::<String>::new());
    let shop = &merged.deployments["shop"];
    assert_eq!((shop.file.as_path(), shop.position.line), (Path::new("/s/shop.yaml"), 1));
    let places: Vec<_> = shop
        .services
        .values()
        .map(|s| format!("{} {}:{} {:?}", s.name, s.file.display(), s.position, s.runtime))
        .collect();
    assert_eq!(places, ["search /s/a/search.yaml:1:1 Some(Sandbox)", "web /s/shop.yaml:6:3 Some(Docker)"]);
    assert_eq!(shop.services["web"].runtime, Some(RuntimeKind::Docker));
}

#[test]
fn services_without_a_deployment_document_make_one() {
    let files = [
        ("b.yaml", "service: b\ndeployment: made\nimage: { name: x }"),
        ("a.yaml", "# first\nservice: a\ndeployment: made\nimage: { name: x }"),
    ];
    let merged = merged(&files);
    let made = &merged.deployments["made"];
    assert_eq!(made.services.keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((made.file.as_path(), made.position.line), (Path::new("a.yaml"), 2));
}

#[test]
fn one_identity_in_two_files_names_both_and_leaves_the_others_alone() {
    let other = "version: v1\ndeployment: other\nservices: { web: { image: { name: x } } }";
    let merged = merged(&[("one.yaml", SHOP), ("two.yaml", SHOP), ("other.yaml", other)]);
    assert_eq!(merged.deployments.keys().collect::<Vec<_>>(), ["other"]);
    assert_eq!(
        problems(&merged),
        [
            "one.yaml:1:1: the deployment shop is declared twice, also at two.yaml:1:1; remove or rename one of them",
            "two.yaml:1:1: the deployment shop is declared twice, also at one.yaml:1:1; remove or rename one of them",
        ]
    );
    assert!(merged.refused["shop"].contains("declared twice, also at"), "{:?}", merged.refused);
}

#[test]
fn a_deployment_with_a_broken_document_is_refused() {
    let text = format!("{SHOP}---\nservice: search\ndeployment: shop\nimage: {{ name: x }}\nreplica: 3\n");
    let merged = merged(&[("shop.yaml", &text)]);
    assert!(merged.deployments.is_empty());
    assert!(merged.refused["shop"].starts_with("shop.yaml:12:1: replica: unknown key"), "{:?}", merged.refused);
}

#[test]
fn relative_paths_start_at_the_file_and_the_revision_does_not_show_it() {
    let text = "version: v1\ndeployment: paths\nservices:\n  a:\n    image: { name: 'dir:../rootfs' }\n    storage:\n      \
                - { type: bind, source: ./data, target: /data }\n      - { type: bind, source: /etc, target: /etc2 }\n";
    let here = merged(&[("/srv/specs/a/x.yaml", text)]);
    let there = merged(&[("/home/specs/x.yaml", text)]);
    let service = &here.deployments["paths"].services["a"];
    assert_eq!(service.spec.image.name, ImageRef::Dir("/srv/specs/rootfs".into()));
    let sources: Vec<_> = service
        .spec
        .storage
        .iter()
        .map(|storage| match storage {
            Storage::Bind { source, .. } => source.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sources, ["/srv/specs/a/data", "/etc"]);
    assert_eq!(service.revision, there.deployments["paths"].services["a"].revision);
}

#[test]
fn endpoints_of_http_share_a_port_when_host_or_path_tells_them_apart() {
    let text = |second: &str| {
        format!(
            "version: v1\ndeployment: d\nservices:\n  \
             a: {{ image: {{ name: x }}, endpoints: [{{ name: e, protocol: http, port: 80, expose: public, path: /a }}] }}\n  \
             b: {{ image: {{ name: x }}, endpoints: [{{ name: e, port: 80, {second} }}] }}\n"
        )
    };
    for (second, clashes) in [
        ("protocol: http, expose: public, path: /b", false),
        ("protocol: websocket, expose: public, host: h, path: /a", false),
        ("protocol: http, expose: public, path: /a", true),
        ("protocol: https, expose: public, path: /b", true),
        ("protocol: tcp, expose: public", true),
        ("protocol: udp, expose: public", false),
        ("protocol: http, path: /a", false),
    ] {
        assert_eq!(merged(&[("d.yaml", &text(second))]).refused.contains_key("d"), clashes, "{second}");
    }
}

#[test]
fn every_cycle_is_printed_once() {
    let text = "version: v1\ndeployment: d\nservices:\n  \
                a: { image: { name: x }, depends: [{ service: b }] }\n  \
                b: { image: { name: x }, depends: [{ service: a }, { service: c }] }\n  \
                c: { image: { name: x }, depends: [{ service: d }] }\n  \
                d: { image: { name: x }, depends: [{ service: c }] }\n";
    let merged = merged(&[("d.yaml", text)]);
    assert_eq!(
        problems(&merged),
        [
            "d.yaml:4:49: services.a.depends: services wait for each other: a -> b -> a; remove one of these depends",
            "d.yaml:6:49: services.c.depends: services wait for each other: c -> d -> c; remove one of these depends",
        ]
    );
}
