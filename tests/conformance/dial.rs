//! Promises about connections to what listens inside.

use evenkeel::runtime::{AnsweredBy, Dial, Dialed, ErrorKind, Runtime};
use evenkeel::state::InstanceRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Harness, Program, SERVED, create, eventually, id, run, skipped};
use crate::life::unknown;

fn dial<'a, H: Harness>(_: &H, runtime: &'a dyn Runtime) -> Option<&'a dyn Dial> {
    let dial = runtime.dial();
    if dial.is_none() {
        skipped::<H>("it gives no connection to instances");
    }
    dial
}

/// What a server says to a request; nothing where it hangs up.
async fn ask(dialed: Dialed) -> String {
    let mut stream = dialed.stream;
    let mut answer = Vec::new();
    if stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.is_ok() {
        let _ = stream.read_to_end(&mut answer).await;
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Whether a connection is taken by the instance itself, as far as can be told.
async fn is_answered(dial: &dyn Dial, instance: &InstanceRef) -> bool {
    match dial.dial(instance, SERVED).await {
        Ok(Dialed { answered_by: AnsweredBy::Instance, .. }) => true,
        Ok(relayed) => !ask(relayed).await.is_empty(),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Failed, "{error}");
            false
        }
    }
}

pub async fn dial_reaches_what_listens<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(dial) = dial(harness, &*runtime) else { return };
    let instance = run(harness, &*runtime, id("web", 0), &Program::Serves).await.as_ref();
    let answer = eventually(harness, "it answers", async || {
        let answer = ask(dial.dial(&instance, SERVED).await.ok()?).await;
        (!answer.is_empty()).then_some(answer)
    })
    .await;
    assert!(answer.starts_with("HTTP/1."), "{answer}");
    // A handle that made nothing of it finds the way too.
    let other = harness.runtime().await;
    let again = ask(other.dial().expect("as before").dial(&instance, SERVED).await.expect("a connection")).await;
    assert!(again.starts_with("HTTP/1."), "{again}");
}

pub async fn dial_where_nothing_listens_fails<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(dial) = dial(harness, &*runtime) else { return };
    let instance = run(harness, &*runtime, id("web", 0), &Program::Silent).await.as_ref();
    assert!(!is_answered(dial, &instance).await);
    let created = create(harness, &*runtime, id("web", 1), &Program::Serves).await.as_ref();
    let error = dial.dial(&created, SERVED).await.map(|dialed| dialed.answered_by);
    assert!(error.is_err() || !is_answered(dial, &created).await, "it does not run: {error:?}");
}

pub async fn dial_of_unknown_is_not_found<H: Harness>(harness: &H) {
    let runtime = harness.runtime().await;
    let Some(dial) = dial(harness, &*runtime) else { return };
    let error = dial.dial(&unknown(runtime.kind(), harness), SERVED).await.expect_err("there is none");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    let stranger = harness.stranger().await;
    let foreign = run(harness, &*stranger, id("web", 2), &Program::Serves).await.as_ref();
    let error = dial.dial(&foreign, SERVED).await.expect_err("it is another's");
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}
