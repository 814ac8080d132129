//! What is left of instances whose directory somebody took away.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use evenkeel::runtime::{Remnants, Runtime, RuntimeError, Volumes};
use evenkeel::spec::Signal;
use evenkeel::state::{Remnant, RemnantKind, StopCause};

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
async fn what_is_mounted_over_a_directory_after_it_was_looked_at_stays() {
    if !is_root() {
        return;
    }
    let sandbox = Sandbox::in_folder("state");
    sandbox.run(SLEEPS).await;
    let left = sandbox.root.path().join("sandbox/instances/demo_web_7_01234567_0");
    let precious = sandbox.root.path().join("precious");
    for dir in [&left, &precious] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(precious.join("file"), "kept").unwrap();
    let found = all(&sandbox).await;
    // A part of the same file system.
    rustix::mount::mount_bind(&precious, &left).unwrap();
    sandbox.runtime.clear(&found[0]).await.unwrap();
    rustix::mount::unmount(&left, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "kept");
    sandbox.runtime.clear(&found[0]).await.unwrap();
    assert!(!left.exists());
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

#[tokio::test]
async fn nothing_goes_out_of_sight_that_something_is_mounted_in_and_the_mount_is_told() {
    if !is_root() {
        return eprintln!("skipped: this user can't mount");
    }
    let sandbox = Sandbox::new();
    let yaml = format!("{SLEEPS}storage: [{{ type: named, name: data, target: /tmp/data }}]\nstop_grace_period: 0s\n");
    let instance = sandbox.run(&yaml).await.as_ref();
    let precious = sandbox.root.path().join("precious");
    fs::create_dir_all(&precious).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    let volume = sandbox.root.path().join("sandbox/volumes/demo/data");
    let dir = sandbox.dir(&instance);
    let (in_volume, in_dir) = (volume.join("in"), dir.join("m"));
    fs::write(volume.join("own"), "x").unwrap();
    for place in [&in_volume, &in_dir] {
        fs::create_dir(place).unwrap();
        rustix::mount::mount_bind(&precious, place).unwrap();
    }
    let request = crate::support::stop(Signal::KILL, Duration::ZERO, StopCause::Retired);
    sandbox.runtime.stop(&instance, &request).await.unwrap();
    let is_told = |error: RuntimeError, place: &Path| {
        let told = format!("something is mounted at {}; unmount it, then this goes on", place.display());
        assert!(error.to_string().ends_with(&told), "{error}");
    };
    for _ in 0..2 {
        is_told(sandbox.runtime.remove(&instance).await.unwrap_err(), &in_dir);
        is_told(sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap_err(), &in_volume);
    }
    assert!(sandbox.find(&instance).await.is_some() && volume.join("own").exists());
    for place in [&in_volume, &in_dir] {
        rustix::mount::unmount(place, rustix::mount::UnmountFlags::empty()).unwrap();
    }
    sandbox.runtime.remove(&instance).await.unwrap();
    sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
    assert_eq!((dir.exists(), volume.exists()), (false, false));
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "kept");
}

#[tokio::test]
async fn what_removals_left_that_were_cut_off_is_told_with_what_is_mounted_in_it() {
    let sandbox = Sandbox::new();
    let root = sandbox.root.path().join("sandbox");
    let precious = sandbox.root.path().join("precious");
    fs::create_dir_all(&precious).unwrap();
    fs::write(precious.join("file"), "kept").unwrap();
    let left = [root.join("instances/.gone-1-1"), root.join("volumes/.gone-1-2")];
    for dir in &left {
        fs::create_dir_all(dir.join("in")).unwrap();
        if is_root() {
            rustix::mount::mount_bind(&precious, dir.join("in")).unwrap();
        }
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(dir).unwrap().set_modified(long_ago).unwrap();
    }
    let fresh = root.join("volumes/.gone-2-2");
    fs::create_dir_all(&fresh).unwrap();
    if is_root() {
        let mounts = of_kind(&sandbox, RemnantKind::Mount).await;
        let told: BTreeSet<&str> = mounts.iter().map(|one| one.name.as_str()).collect();
        let places = left.each_ref().map(|dir| dir.join("in").display().to_string());
        assert_eq!(told, places.iter().map(String::as_str).collect());
        for one in &mounts {
            sandbox.runtime.clear(one).await.unwrap();
        }
    }
    let directories = of_kind(&sandbox, RemnantKind::Directory).await;
    assert_eq!(directories.iter().map(|one| Path::new(&one.name)).collect::<Vec<_>>(), left.each_ref());
    for one in &directories {
        sandbox.runtime.clear(one).await.unwrap();
    }
    assert_eq!((left[0].exists(), left[1].exists(), fresh.exists()), (false, false, true));
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "kept");
}
