//! Many files together.

use std::path::{Path, PathBuf};

use evenkeel::spec::{self, ImageRef, Merged, ParsedFile, RuntimeKind, Storage, merge, parse};

fn merged(files: &[(&str, &str)]) -> Merged {
    let files: Vec<_> = files.iter().map(|(name, text)| (PathBuf::from(name), parse(text))).collect();
    merge(&files)
}

fn problems(merged: &Merged) -> Vec<String> {
    merged.problems.iter().map(|one| format!("{}:{}", one.file.display(), one.problem)).collect()
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
            "d.yaml:4:49: services.a.depends[0].service: services wait for each other: a -> b -> a; remove one of these depends",
            "d.yaml:6:49: services.c.depends[0].service: services wait for each other: c -> d -> c; remove one of these depends",
        ]
    );
}

/// Everything that is wrong with files, inside of documents and between them.
fn everything(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = files.iter().map(|(name, text)| (PathBuf::from(name), parse(text))).collect();
    let problems = spec::problems(&files, &merge(&files));
    problems.iter().map(|(file, problem)| format!("{}:{problem}", file.display())).collect()
}

#[test]
fn what_is_wrong_between_documents_is_told_with_what_is_wrong_inside_of_them() {
    let shop = "version: v1
deployment: shop
services:
  web:
    imgae: { name: nginx }
    depends: [{ service: ghost }, { service: ap, condition: started }]
    endpoints: [{ name: http, protocol: http, port: 80, expose: public }]
  api:
    image: { name: x }
    depends: [{ service: web, timeout: 0s }, { service: api }]
  twice:
    image: { name: x }
";
    let more = "service: twice
deployment: shop
image: { name: x }
replica: 3
---
service: api2
deployment: shop
image: { name: x }
depends: [{ service: web, condition: strted }]
port_mappings: [{ container_port: 80, host_port: 80 }]
---
service: ap
deployment: other
image: { name: x }
depends: [{ service: api }]
";
    let web = "services.web.depends[0].service: the deployment shop has no service \"ghost\"";
    assert_eq!(
        everything(&[("more.yaml", more), ("shop.yaml", shop)]),
        [
            "more.yaml:1:1: the service shop/twice is declared twice, also at shop.yaml:11:3; remove or rename one of them",
            "more.yaml:4:1: replica: unknown key `replica`; write `scale: { mode: fixed, replicas: 3 }`",
            "more.yaml:9:38: depends[0].condition: \"strted\" is not one of started, healthy, ready; did you mean `started`?",
            "more.yaml:10:50: port_mappings[0].host_port: port 80 is also taken by shop/web at shop.yaml:7:53; choose another port for one of them",
            "more.yaml:15:22: depends[0].service: the deployment other has no service \"api\"; services of other are ap",
            "shop.yaml:5:5: services.web.imgae: unknown key `imgae`; did you mean `image`?",
            &format!("shop.yaml:6:26: {web}; services of shop are api, api2, twice, web"),
            "shop.yaml:6:46: services.web.depends[1].service: the deployment shop has no service \"ap\"; did you mean `api`?",
            "shop.yaml:7:53: services.web.endpoints[0].port: port 80 is also taken by shop/api2 at more.yaml:10:50; choose another port for one of them",
            "shop.yaml:10:40: services.api.depends[0].timeout: `timeout` must be more than 0; write a time such as 5m",
            "shop.yaml:10:57: services.api.depends[1].service: a service can't depend on itself; name another service of the deployment",
            "shop.yaml:11:3: the service shop/twice is declared twice, also at more.yaml:1:1; remove or rename one of them",
        ]
    );
}

#[test]
fn a_service_of_a_broken_document_is_known() {
    let web = "service: web\ndeployment: shop\nimage: { name: x }\ndepends: [{ service: db }]\n";
    for (what, db) in [
        ("a key that is not known", "service: db\ndeployment: shop\nimage: { name: x }\nreplica: 3"),
        ("a service of which nothing is left", "version: v1\ndeployment: shop\nservices:\n  db: 7"),
        ("a deployment without its version", "deployment: shop\nservices:\n  db: { image: { name: x } }"),
        (
            "a second document of the deployment",
            &format!("{}---\n{}", SHOP.replace("web:", "api:"), SHOP.replace("web:", "db:")),
        ),
        ("a list of services", "version: v1\ndeployment: shop\nservices: [{ name: db, image: { name: x } }]"),
        ("a name that is not one", "version: v1\ndeployment: shop\nservices:\n  DB: { image: { name: x } }"),
        ("a deployment's name that is not one", "service: db\ndeployment: Shop\nimage: { name: x }"),
        ("a misspelt service", "servce: db\ndeployment: shop\nimage: { name: x }"),
        ("a misspelt deployment", "service: db\ndeploymnet: shop\nimage: { name: x }"),
        ("a misspelt map of services", "version: v1\ndeployment: shop\nservcies:\n  db: { image: { name: x } }"),
        ("services twice", "version: v1\ndeployment: shop\nservices: {}\nservices:\n  db: { image: { name: x } }"),
        ("a name twice", "service: other\nservice: db\ndeployment: shop\nimage: { name: x }"),
        (
            "a merge that is none",
            "version: v1\ndeployment: shop\nservices:\n  <<: nothing\n  a: { image: { name: x } }",
        ),
        ("text that ends being YAML", "service: other\ndeployment: other\nimage: { name: x }\n---\nservice: [db"),
        ("text that is none", "service: db\0"),
        ("text that is no map", "db"),
    ] {
        let said = everything(&[("db.yaml", db), ("web.yaml", web)]);
        assert!(said.iter().any(|line| line.starts_with("db.yaml:")), "{what}: {said:?}");
        assert!(!said.iter().any(|line| line.contains("has no service")), "{what}: {said:?}");
        let refused = merged(&[("db.yaml", db), ("web.yaml", web)]).refused;
        assert!(refused.contains_key("shop"), "{what}: {refused:?}");
    }
}

#[test]
fn what_can_not_declare_a_service_does_not_hide_that_it_is_missing() {
    let web = "service: web\ndeployment: shop\nimage: { name: x }\ndepends: [{ service: db }]\n";
    for other in [
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: db }",
        "service: db\ndeployment: other\nimage: { name: x }\nreplica: 3",
        "version: v1\ndeployment: shop\nservices:\n  api: { image: { name: x }, env: { A: 1, A: 2 } }",
    ] {
        let said = everything(&[("other.yaml", other), ("web.yaml", web)]);
        assert!(said.iter().any(|line| line.contains("the deployment shop has no service \"db\"")), "{said:?}");
    }
}

#[test]
fn a_file_that_can_not_be_read_may_declare_anything() {
    let web = "service: web\ndeployment: shop\nimage: { name: x }\ndepends: [{ service: db }]\n";
    let files = [(PathBuf::from("db.yaml"), ParsedFile::unread()), (PathBuf::from("web.yaml"), parse(web))];
    let merged = merge(&files);
    assert_eq!(merged.problems, []);
    assert_eq!(
        merged.refused["shop"],
        "web.yaml:4:22: the service \"db\" is not known: what may declare it has problems"
    );
}

#[test]
fn a_port_is_only_said_to_be_taken_by_what_is_certain() {
    let good = "service: a\ndeployment: d\nimage: { name: x }\n\
                endpoints: [{ name: e, protocol: http, port: 80, expose: public }]\n\
                port_mappings: [{ container_port: 1, host_port: 90 }]\n";
    let taken = |list: &str, element: &str| {
        let text = format!("service: b\ndeployment: d\nimage: 7\n{list}: [{{ {element} }}]\n");
        let said = everything(&[("a.yaml", good), ("b.yaml", &text)]);
        said.iter().filter(|line| line.contains("is also taken")).count() == 2
    };
    let http = "name: e, protocol: http, port: 80, expose: public";
    for (more, certain) in [
        ("", true),
        (", target_port: 81", true),
        (", target_port: 0", true),
        (", stream: { session_timeout: soon }", true),
        (", hots: b.example.org", false),
        (", host: [b.example.org]", false),
        (", path: /a, path: /", false),
    ] {
        assert_eq!(taken("endpoints", &format!("{http}{more}")), certain, "{more}");
    }
    for element in [
        "protocol: http, port: 80, expose: public",
        "name: [e], protocol: http, port: 80, expose: public",
        "nmae: e, protocol: http, port: 80, expose: public",
    ] {
        assert!(taken("endpoints", element), "{element}");
    }
    for element in ["host_port: 90", "container_port: 0, host_port: 90", "contaner_port: 2, host_port: 90"] {
        assert!(taken("port_mappings", element), "{element}");
    }
    for (list, element) in [
        ("endpoints", "name: e, protocol: htp, port: 80, expose: public"),
        ("endpoints", "name: e, protocol: http, port: 0x1ffff, expose: public"),
        ("endpoints", "name: e, port: 80, expose: public"),
        ("endpoints", "name: e, protcol: http, port: 80, expose: public"),
        ("port_mappings", "container_port: 2, contaner_port: 2, host_port: 90"),
        ("port_mappings", "container_port: 2, host_prt: 90"),
    ] {
        assert!(!taken(list, element), "{element}");
    }
    for (more, certain) in [("", true), (", protocol: ucp", false), (", <<: x", false)] {
        assert_eq!(taken("port_mappings", &format!("container_port: 2, host_port: 90{more}")), certain, "{more}");
    }
}

#[test]
fn elements_of_lists_are_compared_also_where_they_have_other_problems() {
    let text = "version: v1
deployment: d
services:
  a:
    image: { name: x }
    endpoints:
      - { name: one, protocol: http, port: 0 }
      - { name: one, protocol: http, port: 1 }
      - { name: two, protocol: htp, port: 2 }
      - { name: two, port: 3 }
      - { protocol: tcp, port: 4 }
      - { protocol: tcp, port: 5 }
      - { name: [none], protocol: tcp, port: 5, path: / }
    port_mappings: [{ container_port: 80, host_port: 8080 }, { container_port: 0, host_port: 8080 }]
    storage:
      - { type: bind, source: /a, target: /data }
      - { type: bnid, source: /b, target: /data }
      - { type: named, target: /data/ }
      - { source: /c, target: other }
      - { type: tmpfs }
      - { type: tmpfs }
      - { type: tmpfs, target: none }
    init: { steps: [{ id: wait, uses: init.wait }, { id: wait, uses: init.run, with: { command: x } }] }
";
    let said = everything(&[("d.yaml", text)]);
    assert_eq!(
        said,
        [
            "d.yaml:7:44: services.a.endpoints[0].port: 0 is out of range: it must be from 1 to 65535",
            "d.yaml:8:17: services.a.endpoints[1].name: the endpoint \"one\" is declared twice; give each endpoint of a service its own name",
            "d.yaml:9:32: services.a.endpoints[2].protocol: \"htp\" is not one of http, https, tcp, udp, websocket; did you mean `http`?",
            "d.yaml:10:9: services.a.endpoints[3]: `protocol` is missing; write one of http, https, tcp, udp, websocket",
            "d.yaml:10:17: services.a.endpoints[3].name: the endpoint \"two\" is declared twice; give each endpoint of a service its own name",
            "d.yaml:11:9: services.a.endpoints[4]: `name` is missing; write `name: NAME`",
            "d.yaml:12:9: services.a.endpoints[5]: `name` is missing; write `name: NAME`",
            "d.yaml:13:17: services.a.endpoints[6].name: expected text, found a list",
            "d.yaml:13:55: services.a.endpoints[6].path: `path` means nothing to a tcp or udp endpoint; leave it out, or write `protocol: http`",
            "d.yaml:14:54: services.a.port_mappings[0].host_port: port 8080 is also taken by d/a at d.yaml:14:94; choose another port for one of them",
            "d.yaml:14:80: services.a.port_mappings[1].container_port: 0 is out of range: it must be from 1 to 65535",
            "d.yaml:14:94: services.a.port_mappings[1].host_port: port 8080 is also taken by d/a at d.yaml:14:54; choose another port for one of them",
            "d.yaml:17:17: services.a.storage[1].type: \"bnid\" is not one of bind, named, anonymous, workspace, tmpfs, s3; did you mean `bind`?",
            "d.yaml:17:43: services.a.storage[1].target: storage[0] is already mounted at /data; choose another target",
            "d.yaml:18:9: services.a.storage[2]: `name` is missing; write `name: NAME`",
            "d.yaml:18:32: services.a.storage[2].target: storage[0] is already mounted at /data; choose another target",
            "d.yaml:19:9: services.a.storage[3]: `type` is missing; write one of bind, named, anonymous, workspace, tmpfs, s3",
            "d.yaml:19:31: services.a.storage[3].target: \"other\" is not an absolute path; begin it with /",
            "d.yaml:20:9: services.a.storage[4]: `target` is missing; write `target: /PATH`",
            "d.yaml:21:9: services.a.storage[5]: `target` is missing; write `target: /PATH`",
            "d.yaml:22:32: services.a.storage[6].target: \"none\" is not an absolute path; begin it with /",
            "d.yaml:23:39: services.a.init.steps[0].uses: \"init.wait\" is not one of init.wait_tcp, init.wait_http, init.run; did you mean `init.wait_tcp`?",
            "d.yaml:23:58: services.a.init.steps[1].id: the id \"wait\" is used twice; give each step its own id",
        ]
    );
}

#[test]
fn a_name_that_is_none_hides_nothing_else() {
    let text = "version: v1
deployment: Shop
services:
  web:
    image: { name: x }
    depends: [{ service: nope }, { service: Other }, { service: other }, { service: my-db }]
    endpoints: [{ name: http, protocol: http, port: 80, expose: public }]
  Other:
    image: { name: x }
    endpoints: [{ name: http, protocol: http, port: 80, expose: public }]
  MyDb:
    image: { name: x }
    depends: [{ service: web }, { service: wep }]
";
    let text_of = |deployment: &str| text.replace("Shop", deployment);
    let between = |deployment: &str| {
        vec![
            format!(
                "d.yaml:6:26: services.web.depends[0].service: the deployment {deployment} has no service \"nope\"; services of {deployment} are web"
            ),
            "d.yaml:7:53: services.web.endpoints[0].port: port 80 is also taken by ".to_owned()
                + deployment
                + "/Other at d.yaml:10:53; choose another port for one of them",
            format!(
                "d.yaml:10:53: services.Other.endpoints[0].port: port 80 is also taken by {deployment}/web at d.yaml:7:53; choose another port for one of them"
            ),
            format!(
                "d.yaml:13:44: services.MyDb.depends[1].service: the deployment {deployment} has no service \"wep\"; services of {deployment} are web"
            ),
        ]
    };
    for deployment in ["shop", "Shop"] {
        let said = everything(&[("d.yaml", &text_of(deployment))]);
        let found: Vec<String> = said.into_iter().filter(|line| !line.contains(" is not a name; ")).collect();
        assert_eq!(found, between(deployment));
    }
}

#[test]
fn what_refers_to_a_name_that_is_none_is_not_called_missing() {
    let web = "service: web\ndeployment: shop\nimage: { name: x }\ndepends: [{ service: my-db }]\n";
    for (db, hidden) in [
        ("service: My_DB\ndeployment: shop\nimage: { name: x }", true),
        ("service: my-db\ndeployment: SHOP\nimage: { name: x }", true),
        ("service: '?'\ndeployment: shop\nimage: { name: x }", true),
        ("service: my-db\ndeployment: '?'\nimage: { name: x }", true),
        ("service: Cache\ndeployment: shop\nimage: { name: x }", false),
        ("service: my-db\ndeployment: Store\nimage: { name: x }", false),
    ] {
        let said = everything(&[("db.yaml", db), ("web.yaml", web)]);
        assert_eq!(!said.iter().any(|line| line.contains("has no service")), hidden, "{db}: {said:?}");
        let other = web.replace("shop", "SHOP").replace("my-db", "api");
        let api = "service: api\ndeployment: shop\nimage: { name: x }\n";
        let said = everything(&[("api.yaml", api), ("other.yaml", &other)]);
        assert!(!said.iter().any(|line| line.contains("has no service")), "{said:?}");
    }
}

#[test]
fn a_deployment_whose_name_is_none_may_be_any_for_whoever_removes_what_is_not_declared() {
    let file = parse("service: db\ndeployment: Shop\nimage: { name: x }");
    assert!(file.may_declare_more());
}

#[test]
fn a_cycle_is_printed_also_where_its_services_have_other_problems() {
    let text = "version: v1\ndeployment: d\nservices:\n  \
                a: { image: x, depends: [{ service: b }] }\n  \
                b: { image: { name: x }, depends: [{ service: a }], tty: 1 }\n";
    let cycle = "services.a.depends[0].service: services wait for each other: a -> b -> a; remove one of these depends";
    assert!(
        everything(&[("d.yaml", text)]).contains(&format!("d.yaml:4:39: {cycle}")),
        "{:?}",
        everything(&[("d.yaml", text)])
    );
}

#[test]
fn what_depends_on_itself_is_told_once_and_is_no_cycle() {
    let text = "version: v1\ndeployment: d\nservices:\n  \
                a: { image: { name: x }, depends: [{ service: a }, { service: b }] }\n  \
                b: { image: { name: x }, depends: [{ service: a }] }\n  \
                c: { image: { name: x }, depends: [{ service: c }] }\n";
    let itself = "a service can't depend on itself; name another service of the deployment";
    assert_eq!(
        everything(&[("d.yaml", text)]),
        [
            &format!("d.yaml:4:49: services.a.depends[0].service: {itself}"),
            "d.yaml:4:65: services.a.depends[1].service: services wait for each other: a -> b -> a; remove one of these depends",
            &format!("d.yaml:6:49: services.c.depends[0].service: {itself}"),
        ]
    );
}

#[test]
fn the_services_of_a_deployment_that_is_declared_twice_are_checked_in_both_documents() {
    let shop = |service: &str, depends: &str| {
        format!(
            "version: v1\ndeployment: shop\nservices:\n  \
             {service}: {{ image: {{ name: x }}, depends: [{{ service: {depends} }}] }}\n"
        )
    };
    let twice = |other: &str| {
        format!("the deployment shop is declared twice, also at {other}.yaml:1:1; remove or rename one of them")
    };
    let ghost =
        "services.db.depends[0].service: the deployment shop has no service \"ghost\"; services of shop are db, web";
    assert_eq!(
        everything(&[("a.yaml", &shop("web", "db")), ("b.yaml", &shop("db", "ghost"))]),
        [format!("a.yaml:1:1: {}", twice("b")), format!("b.yaml:1:1: {}", twice("a")), format!("b.yaml:4:50: {ghost}"),]
    );
}
