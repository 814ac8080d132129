//! What is left of instances whose directory somebody took away.

use std::fs;

use evenkeel::runtime::{Remnants, Runtime};
use evenkeel::state::{Remnant, RemnantKind};

use crate::support::{Sandbox, is_root};

const SLEEPS: &str = "image: { name: host }\ncommand: { entrypoint: [/bin/busybox, sleep, '1000'] }\n";

async fn all(sandbox: &Sandbox) -> Vec<Remnant> {
    Remnants::remnants(&sandbox.runtime).await.unwrap()
}

async fn of_kind(sandbox: &Sandbox, kind: RemnantKind) -> Vec<Remnant> {
    all(sandbox).await.into_iter().filter(|one| one.kind == kind).collect()
}

#[tokio::test]
async fn what_runs_without_its_directory_is_found_and_ended_and_what_has_one_is_not() {
    let sandbox = Sandbox::new();
    let kept = sandbox.run(SLEEPS).await;
    assert_eq!(all(&sandbox).await, []);
    let lost = sandbox.runtime.create(&crate::support::request(SLEEPS, 1)).await.unwrap();
    let lost = sandbox.runtime.start(&lost.as_ref()).await.unwrap();
    let dir = sandbox.dir(&lost.as_ref());
    fs::remove_dir_all(&dir).or_else(|_| fs::rename(&dir, sandbox.root.path().join("moved"))).unwrap();
    let moved = sandbox.root.path().join("moved");
    if moved.exists() {
        fs::remove_dir_all(&moved).unwrap();
    }
    let supervisors = of_kind(&sandbox, RemnantKind::Supervisor).await;
    assert_eq!(supervisors.len(), 1, "{supervisors:?}");
    sandbox.runtime.clear(&supervisors[0]).await.unwrap();
    for group in of_kind(&sandbox, RemnantKind::ControlGroup).await {
        sandbox.runtime.clear(&group).await.unwrap();
    }
    assert_eq!(all(&sandbox).await, []);
    let program = lost.pid.unwrap();
    assert!(!fs::exists(format!("/proc/{program}")).unwrap(), "its program has ended with it");
    // Another supervisor that has the number by now would stay.
    let other = Remnant { identity: "1".to_owned(), name: kept.pid.unwrap().to_string(), ..supervisors[0].clone() };
    sandbox.runtime.clear(&other).await.unwrap();
    assert!(sandbox.find(&kept.as_ref()).await.unwrap().phase.is_ready());
}

#[tokio::test]
async fn directories_without_a_record_go_and_what_is_foreign_or_mounted_stays() {
    // The kernel tells of places with blanks in another way.
    let sandbox = Sandbox::in_folder("sp ace");
    sandbox.run(SLEEPS).await;
    let instances = sandbox.root.path().join("sandbox/instances");
    let (left, foreign) = (instances.join("demo_web_7_01234567_0"), instances.join("lost+found"));
    for dir in [&left, &foreign] {
        fs::create_dir_all(dir.join("logs")).unwrap();
    }
    let precious = sandbox.root.path().join("precious");
    fs::create_dir_all(precious.join("sub")).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    let mounted = instances.join("demo_web_8_01234567_0/in side");
    if is_root() {
        fs::create_dir_all(&mounted).unwrap();
        rustix::mount::mount_bind(&precious, &mounted).unwrap();
    }
    // By one another: once nothing is mounted there, the directory below is one as any other.
    for _ in 0..3 {
        for one in all(&sandbox).await {
            sandbox.runtime.clear(&one).await.unwrap();
        }
    }
    assert_eq!((left.exists(), foreign.exists(), mounted.exists()), (false, true, false));
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "kept");
    assert!(precious.join("sub").exists());
    assert_eq!(all(&sandbox).await, []);
}
