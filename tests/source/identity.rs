//! One identity declared twice.

use crate::bench::{Bench, deployment, images, names, problems};

#[test]
fn a_deployment_declared_twice_stays_as_it_was() {
    let mut bench = Bench::with(&["a", "b"]);
    bench.write("copy.yaml", &deployment("a", "two"));
    for _ in 0..2 {
        let snapshot = bench.scan();
        assert_eq!(images(&snapshot), ["a/web=one", "b/web=one"]);
        let said = problems(&snapshot);
        let (first, second) = (&said[0], &said[1]);
        assert!(first.starts_with("a.yaml:") && first.contains("copy.yaml:"), "{said:?}");
        assert!(second.starts_with("copy.yaml:") && second.contains("a.yaml:"), "{said:?}");
        assert!(said.iter().all(|said| said.ends_with("=> a keeps its last good version")), "{said:?}");
        bench.restart();
    }
    bench.remove("a.yaml");
    assert_eq!(images(&bench.scan()), ["a/web=two", "b/web=one"]);
}

#[test]
fn a_new_deployment_declared_twice_is_left_out() {
    let mut bench = Bench::with(&["b"]);
    bench.write("x.yaml", &deployment("a", "one"));
    bench.write("y.yaml", &deployment("a", "one"));
    let snapshot = bench.scan();
    assert_eq!(names(&snapshot), ["b"]);
    assert!(problems(&snapshot).iter().all(|said| said.ends_with("=> a is left out")), "{:?}", problems(&snapshot));
}
