//! Starts of sandboxes, beside a floor that makes the same namespace, mount and exec calls and nothing else, and beside
//! crun and runc where they are installed. Prints the median and the 99th percentile of each, and what an idle instance
//! costs in memory. Needs root and a static busybox.
//!
//!     cargo bench --bench sandbox
//!
//! Names of figures after `--` have only these made: `first-byte`, `end`, `many`, `rest`, `adopted`.

mod floor;
mod memory;
mod oci;
mod sandbox;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Starts one after the other.
const SEQUENTIAL: usize = 200;
/// Instances that are started side by side.
const PARALLEL: usize = 50;
/// Rounds of each parallel figure; the median counts.
const ROUNDS: usize = 5;
/// Instances that are adopted by a new controller.
const ADOPTED: usize = 500;

fn main() {
    if floor::is_child() {
        return;
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        println!("skipped: needs root and /bin/busybox (Debian: busybox-static)");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let image = rootfs(folder.path());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(compare(folder.path(), &image));
}

async fn compare(folder: &Path, image: &Path) {
    let keel = sandbox::Rig::new(&folder.join("keel"), image);
    keel.to_first_byte().await;
    if is_wanted("first-byte") {
        first_bytes(&keel, folder, image).await;
    }
    if is_wanted("end") {
        ends(&keel, folder, image).await;
    }
    if is_wanted("many") {
        side_by_side(&keel, folder, image).await;
    }
    if is_wanted("rest") {
        keel.at_rest(PARALLEL).await;
    }
    if is_wanted("adopted") {
        keel.adopted(ADOPTED).await;
    }
}

/// Whether a figure was asked for by name, or none was.
fn is_wanted(figure: &str) -> bool {
    let mut names = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).peekable();
    names.peek().is_none() || names.any(|name| name == figure)
}

async fn first_bytes(keel: &sandbox::Rig, folder: &Path, image: &Path) {
    println!("{SEQUENTIAL} starts one after the other, to the first byte of output");
    let floor = Figures::of((0..SEQUENTIAL).map(|_| floor::to_first_byte(folder, image, false)));
    let mut times = Vec::new();
    for _ in 0..SEQUENTIAL {
        times.push(keel.to_first_byte().await);
    }
    let own = Figures::of(times);
    print("floor", floor, floor);
    print("keel, create and start", own, floor);
    print(
        "floor, network of its own",
        Figures::of((0..SEQUENTIAL).map(|_| floor::to_first_byte(folder, image, true))),
        floor,
    );
}

async fn ends(keel: &sandbox::Rig, folder: &Path, image: &Path) {
    println!("{SEQUENTIAL} runs one after the other, to the recorded end");
    let floor = Figures::of((0..SEQUENTIAL).map(|_| floor::to_exit(folder, image)));
    let mut times = Vec::new();
    for _ in 0..SEQUENTIAL {
        times.push(keel.to_exit().await);
    }
    print("floor", floor, floor);
    print("keel", Figures::of(times), floor);
    for program in ["crun", "runc"] {
        let Some(bundle) = oci::Bundle::new(program, folder, image) else { continue };
        print(program, Figures::of((0..SEQUENTIAL / 4).map(|_| bundle.to_exit())), floor);
    }
}

async fn side_by_side(keel: &sandbox::Rig, folder: &Path, image: &Path) {
    println!("{PARALLEL} instances side by side, until all run");
    let mut rounds: [Vec<Duration>; 4] = Default::default();
    let bundles = ["crun", "runc"].map(|program| oci::Bundle::new(program, folder, image));
    for _ in 0..ROUNDS {
        rounds[0].push(floor::many(folder, image, PARALLEL));
        rounds[1].push(keel.many(PARALLEL).await);
        for (bundle, times) in bundles.iter().zip(&mut rounds[2..]) {
            times.extend(bundle.as_ref().map(|bundle| bundle.many(PARALLEL)));
        }
    }
    let floor = Figures::of(rounds[0].clone());
    for (name, times) in ["floor", "keel", "crun", "runc"].iter().zip(rounds) {
        if !times.is_empty() {
            let figures = Figures::of(times);
            print(name, figures, floor);
            println!("{:>60.0} starts per second", PARALLEL as f64 / figures.median.as_secs_f64());
        }
    }
}

/// A root file system with busybox alone.
fn rootfs(folder: &Path) -> PathBuf {
    let root = folder.join("rootfs");
    for name in ["bin", "etc", "dev", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(root.join(name)).expect("a directory");
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("a copy of busybox");
    for name in ["sh", "sleep", "true", "echo"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).expect("a link");
    }
    root
}

#[derive(Clone, Copy)]
struct Figures {
    median: Duration,
    high: Duration,
}

impl Figures {
    fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort();
        Self { median: times[times.len() / 2], high: times[times.len() * 99 / 100] }
    }
}

fn print(name: &str, own: Figures, floor: Figures) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "  {name:<28} p50 {:>8.3} ms   p99 {:>8.3} ms   {:>5.2} x floor",
        ms(own.median),
        ms(own.high),
        own.median.as_secs_f64() / floor.median.as_secs_f64()
    );
}

fn timed<T>(action: impl FnOnce() -> T) -> (Duration, T) {
    let began = Instant::now();
    let result = action();
    (began.elapsed(), result)
}
