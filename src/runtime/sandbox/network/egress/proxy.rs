//! Serving one instance: a thread for each connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::greeting::tunnel;
use super::head::{Kind, Request, parse};
use super::hosts;
use super::policy::{Host, Policy, Refusal};
use super::relay::relay;

/// Most connections at a time; each takes two threads. More wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 256;
/// Pause where no connection can be taken on.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest head of a request, in bytes: nginx's bound for proxies is 32 KiB.
const LONGEST_HEAD: usize = 32 << 10;
/// Longest pause within the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Longest time for a host to answer one try to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Most addresses of a host that are tried.
const MOST_ADDRESSES: usize = 8;
/// Stack of a thread: looking a name up takes some of it.
const STACK: usize = 256 << 10;

/// Serves for as long as this process lives.
pub fn serve(listener: &TcpListener, policy: Policy) -> ! {
    let (policy, open) = (Arc::new(policy), Arc::new(AtomicUsize::new(0)));
    loop {
        while open.load(Ordering::Acquire) >= MOST_CONNECTIONS {
            thread::sleep(PAUSE);
        }
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        open.fetch_add(1, Ordering::AcqRel);
        let (policy, counted) = (Arc::clone(&policy), Arc::clone(&open));
        let work = move || {
            // A client that went away needs no answer.
            let _ = attend(client, &policy);
            counted.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().stack_size(STACK).spawn(work).is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// What is said besides of a name that may be meant for a service of the deployment.
const NO_SERVICES: &str = "; other services of the deployment are not reached from an instance with sandbox.allow_hosts, \
                           which is in no network with them: give the service that needs them sandbox.network: full instead";

/// Whether a host has a name as services have it: `web` or `0.web`.
fn may_be_service(host: &Host) -> bool {
    let Host::Name(name) = host else { return false };
    let service = match name.split_once('.') {
        Some((slot, service)) if slot.bytes().all(|letter| letter.is_ascii_digit()) => service,
        _ => name,
    };
    !service.contains('.')
}

/// An answer of the proxy itself.
struct Answer {
    status: &'static str,
    why: String,
}

fn attend(mut client: TcpStream, policy: &Policy) -> io::Result<()> {
    client.set_read_timeout(Some(HEAD_LIMIT))?;
    let mut bytes = Vec::new();
    let connected = read(&mut client, &mut bytes)?.and_then(|request| Ok((connect(&request, policy)?, request)));
    let (mut server, request) = match connected {
        Ok(connected) => connected,
        Err(Answer { status, why }) => {
            let text = format!("keel: {why}\n");
            let fields = format!("Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close", text.len());
            return client.write_all(format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\n{text}").as_bytes());
        }
    };
    client.set_read_timeout(None)?;
    let rest = bytes.get(request.length..).unwrap_or_default();
    match &request.kind {
        Kind::Tunnel => {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
            tunnel(&client, &server, rest, |name| may_name(name, &request, policy))
        }
        Kind::Plain(head) => {
            server.write_all(head)?;
            server.write_all(rest)?;
            drop(bytes);
            relay(&client, &server)
        }
    }
}

/// Whether a client that is connected to the host of this request may mean the server of this name there. Where it asked
/// for an address, whoever allowed that allowed every server at it.
fn may_name(name: &str, request: &Request, policy: &Policy) -> bool {
    match request.host {
        Host::Address(_) => true,
        Host::Name(_) => Host::parse(name).is_some_and(|host| policy.host(&host, request.port).is_ok()),
    }
}

/// Reads a request, and perhaps more than its head.
fn read(client: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<Result<Request, Answer>> {
    let mut buffer = [0; 4096];
    loop {
        match parse(bytes) {
            Ok(Some(request)) => return Ok(Ok(request)),
            Ok(None) if bytes.len() >= LONGEST_HEAD => {
                return Ok(Err(Answer { status: "431 Request Header Fields Too Large", why: "it is too long".into() }));
            }
            Ok(None) => {}
            Err(why) => return Ok(Err(Answer { status: "400 Bad Request", why: why.to_owned() })),
        }
        match client.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            size => bytes.extend(buffer.get(..size).unwrap_or_default()),
        }
    }
}

/// Connects to one of the host's addresses, each of which was found to be open: it is never looked up a second time.
fn connect(request: &Request, policy: &Policy) -> Result<TcpStream, Answer> {
    let Request { host, port, .. } = request;
    let name = match host {
        Host::Name(name) => name.clone(),
        Host::Address(address) => address.to_string(),
    };
    let hint = if may_be_service(host) { NO_SERVICES } else { "" };
    let refused =
        |why: Refusal| Answer { status: "403 Forbidden", why: format!("{name}:{port} is not reached: {why}{hint}") };
    policy.host(host, *port).map_err(refused)?;
    let failed = |error: &io::Error| Answer { status: "502 Bad Gateway", why: format!("{name}:{port}: {error}{hint}") };
    let addresses = resolve(host, *port).map_err(|error| failed(&error))?;
    let mut last = refused(Refusal::NotPublic);
    for address in addresses.into_iter().take(MOST_ADDRESSES) {
        let is_open = policy.address(address.ip(), *port);
        match is_open.and_then(|()| if is_own(address) { Err(Refusal::NotPublic) } else { Ok(()) }) {
            Ok(()) => match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = failed(&error),
            },
            Err(why) => last = refused(why),
        }
    }
    Err(last)
}

fn resolve(host: &Host, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(match host {
        Host::Address(address) => vec![SocketAddr::new(*address, port)],
        Host::Name(name) => match hosts::find(name) {
            known if known.is_empty() => (absolute(name).as_str(), port).to_socket_addrs()?.collect(),
            known => known.into_iter().map(|address| SocketAddr::new(address, port)).collect(),
        },
    })
}

/// A name that the resolver completes with no domain of its own (`search` of resolv.conf(5)): what is looked up is the
/// name that the rules were asked about. The resolver looks for it in no file then.
fn absolute(name: &str) -> String {
    format!("{name}.")
}

/// Whether an address is one of this machine: the kernel would send from it to itself. Nothing is sent to find out.
fn is_own(address: SocketAddr) -> bool {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let source = UdpSocket::bind(any).and_then(|socket| socket.connect(address).and_then(|()| socket.local_addr()));
    source.is_ok_and(|source| source.ip() == address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_a_service_of_the_deployment_is_told_that_it_is_out_of_reach() {
        let answer = |name: &str, rules: &[&str]| {
            let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
            let head = format!("GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n");
            let request = parse(head.as_bytes()).unwrap().unwrap();
            connect(&request, &Policy::parse(&rules).unwrap()).err().unwrap()
        };
        for name in ["web", "0.web"] {
            let Answer { status, why } = answer(name, &["example.org"]);
            assert_eq!(status, "403 Forbidden");
            assert_eq!(why, format!("{name}:80 is not reached: sandbox.allow_hosts does not allow it{NO_SERVICES}"));
        }
        let outside = answer("web.test", &["example.org"]).why;
        assert_eq!(outside, "web.test:80 is not reached: sandbox.allow_hosts does not allow it");
    }

    #[test]
    fn the_name_that_was_asked_about_is_the_name_that_is_looked_up() {
        // With the domain `b` in the list of resolv.conf(5) the resolver would look for `a.b` as well.
        assert_eq!(absolute("a"), "a.");
        assert_eq!(resolve(&Host::Name("localhost".into()), 7).unwrap().first().map(SocketAddr::port), Some(7));
    }
}
