//! Connections that an instance accepted: those of its own network, and of no other.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use evenkeel::runtime::{Runtime, Uncounted};
use evenkeel::state::Instance;

use crate::network::wait_until;
use crate::support::{Sandbox, has_own_network, request, shell};

const SERVES: &str = "exec /bin/busybox httpd -f -p 8080 -h /tmp";
const PUBLISHED: &str = "\nport_mappings: [{ container_port: 8080 }]";
const ALONE: &str = "\nsandbox: { network: loopback }";

async fn accepted(sandbox: &Sandbox, instance: &Instance) -> Result<u64, Uncounted> {
    sandbox.runtime.stats().unwrap().stats(&instance.as_ref()).await.unwrap().accepted
}

/// Asks a server at a port of the machine once; whether it answers.
fn asks(port: u16) -> bool {
    let mut answer = Vec::new();
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok_and(|mut stream| {
        let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_end(&mut answer);
        !answer.is_empty()
    })
}

#[tokio::test]
async fn connections_to_an_instance_with_a_network_of_its_own_are_counted() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&(shell(SERVES) + PUBLISHED + ALONE)).await;
    if !has_own_network(&sandbox, &instance.as_ref()) {
        return eprintln!("skipped: there are no network namespaces here");
    }
    let other = sandbox.runtime.create(&request(&(shell("sleep 1000") + ALONE), 1)).await.unwrap();
    let other = sandbox.runtime.start(&other.as_ref()).await.unwrap();
    let port = instance.ports[0].host_port;
    wait_until("it serves", || asks(port));
    let before = accepted(&sandbox, &instance).await.unwrap();
    for _ in 0..3 {
        assert!(asks(port));
    }
    assert_eq!(accepted(&sandbox, &instance).await, Ok(before + 3));
    assert_eq!(accepted(&sandbox, &other).await, Ok(0), "nobody asks it");
    for instance in [instance, other] {
        sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
    }
}

#[tokio::test]
async fn connections_of_the_machine_are_counted_for_no_instance() {
    let sandbox = Sandbox::new();
    let instance = sandbox.run(&(shell("sleep 1000") + "\nnetwork_mode: host")).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(accepted(&sandbox, &instance).await, Err(Uncounted::SharedNetwork));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}

#[tokio::test]
async fn what_an_instance_asks_the_egress_proxy_for_counts_as_no_request() {
    let sandbox = Sandbox::new();
    let yaml = shell(SERVES) + PUBLISHED + "\nsandbox: { allow_hosts: [example.org] }";
    let instance = sandbox.run(&yaml).await;
    if instance.ports.is_empty() {
        return eprintln!("skipped: there are no network namespaces here");
    }
    assert_eq!(accepted(&sandbox, &instance).await, Err(Uncounted::EgressProxy));
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}
