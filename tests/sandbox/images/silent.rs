//! A registry that accepts connections and never answers.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use evenkeel::runtime::{Progress, Runtime, RuntimeError};
use evenkeel::spec::Image as SpecImage;
use tokio::task::JoinHandle;

use super::build::{Image, Layer};
use super::layout;
use super::server::Server;
use crate::support::{PATIENCE, Sandbox};

/// Images of a registry that come at once.
const AT_ONCE: usize = 4;

type Ensured = JoinHandle<Result<(), RuntimeError>>;

fn named(name: &str) -> SpecImage {
    SpecImage { name: name.parse().unwrap(), pull_policy: None }
}

/// Begins to make an image available; what it waits for is put down.
fn begin(sandbox: &Sandbox, name: String, said: &Arc<Mutex<Vec<String>>>) -> Ensured {
    let (runtime, said) = (sandbox.runtime.clone(), Arc::clone(said));
    tokio::spawn(async move {
        let tell = |progress: Progress| said.lock().unwrap().push(progress.message);
        runtime.ensure_image(&named(&name), &tell).await
    })
}

#[tokio::test]
async fn it_keeps_nothing_waiting_that_comes_from_elsewhere_and_is_told() {
    let sandbox = Sandbox::new();
    // The kernel accepts for it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let stuck: Vec<Ensured> =
        (0..=AT_ONCE).map(|number| begin(&sandbox, format!("{address}/app:{number}"), &said)).collect();
    let all_wait = async {
        while said.lock().unwrap().len() < stuck.len() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, all_wait).await.expect("they tell what they wait for");
    let told = |text: &str| said.lock().unwrap().iter().filter(|one| *one == text).count();
    assert_eq!(told(&format!("waiting for {address} to answer")), AT_ONCE);
    assert_eq!(told(&format!("waiting for other images of {address}")), 1);

    let image = |own: &str| Image::with(Layer::new().file("own", own));
    let local = layout(sandbox.root.path(), &image("local"));
    let healthy = Server::with_image(&image("remote"), |_| None);
    for name in [local, healthy.image()] {
        let wanted = named(&name);
        let ensured = sandbox.runtime.ensure_image(&wanted, &|_| {});
        tokio::time::timeout(PATIENCE, ensured).await.expect("it does not wait for the other registry").unwrap();
    }
    assert!(stuck.iter().all(|one| !one.is_finished()), "the registry still says nothing");
    stuck.iter().for_each(JoinHandle::abort);
}
