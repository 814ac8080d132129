//! `keel demo-server`: what the demo runs, so that it needs nothing but this program.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{Exit, Outcome};
use super::output::print;

/// Answer HTTP requests with a greeting, as the demo's replicas do
///
/// Listens on the port in the variable PORT, of 127.0.0.1 unless --address names another one. GET / answers with the variable GREETING and who answers;
/// GET /crash ends the process with exit code 1. SIGTERM and SIGINT end it with exit code 0.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port to listen on; any free one when 0
    #[arg(long, env = "PORT", default_value_t = 0)]
    port: u16,
    /// Address to listen on; 0.0.0.0 lets other services reach it by its name, where it has a network of its own
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// What to say
    #[arg(long, env = "GREETING", default_value = "Hello")]
    greeting: String,
}

impl Args {
    /// Runs the verb.
    pub async fn run(self) -> Outcome {
        let address = SocketAddr::from((self.address, self.port));
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address} failed"))?;
        let name = std::env::var("HOSTNAME").unwrap_or_else(|_| "demo-server".to_owned());
        let hello = format!("{} from {name}, pid {}\n", self.greeting, std::process::id());
        print(&format!("{name} listens on http://{}\n", listener.local_addr()?))?;
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            served = axum::serve(listener, router(&name, hello)) => served?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        print(&format!("{name} ends\n"))?;
        Ok(Exit::Success)
    }
}

fn router(name: &str, hello: String) -> Router {
    let name = name.to_owned();
    let greet = move || async move {
        // Nobody reads the log of a demo that lost its pipe.
        let _ = print(&format!("{name} greets\n"));
        hello
    };
    Router::new().route("/", get(greet)).route("/healthz", get(|| async { "ok\n" })).route("/crash", get(crash))
}

async fn crash() -> &'static str {
    super::output::note("crashing as asked");
    std::process::exit(1)
}
