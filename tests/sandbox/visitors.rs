//! Who comes by a published port: from which address a program sees them come, and how many at a time. Runs again on the
//! machines that are made for networks of deployments and for pasta.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use evenkeel::runtime::{Runtime, Volumes};
use evenkeel::spec::PortProtocol;
use evenkeel::state::Instance;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::network::{OWN_MACHINE, answer, asked, wait_until};
use crate::pasta::WITH;
use crate::support::{PATIENCE, Sandbox, has_own_network, read_json, request, skip};

const PORTS: &str = "\nport_mappings: [{ container_port: 7001 }, { container_port: 7001, protocol: udp }]";
const VISITORS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 2));
const VISITORS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd6b, 0x6565, 0x6c00, 0, 0, 0, 0, 1));

fn perl(program: &str) -> String {
    let script = format!("ulimit -S -n $(ulimit -H -n); exec /usr/bin/perl -e '{program}'");
    format!("image: {{ name: host }}\ncommand: {{ entrypoint: [/bin/busybox, sh, -c, {script:?}] }}")
}

/// A program that listens at an address and tells whoever connects or sends a datagram where that comes from.
fn telling(at: &str) -> String {
    perl(&format!(
        "use IO::Socket::IP; use Socket qw(getnameinfo NI_NUMERICHOST); \
         sub told {{ (getnameinfo($_[0], NI_NUMERICHOST))[1] }} \
         @at = (LocalHost => \"{at}\", LocalPort => 7001, V6Only => 1); \
         if (fork) {{ $s = IO::Socket::IP->new(@at, Listen => 5) or die; \
                      while ($c = $s->accept) {{ print $c told(getpeername($c)); close $c }} }} \
         else {{ $s = IO::Socket::IP->new(@at, Type => SOCK_DGRAM, Proto => \"udp\") or die; \
                 while (1) {{ $from = recv($s, $text, 99, 0); send($s, told($from), 0, $from) }} }}"
    ))
}

/// What an instance is connected to, and its address in the network of its deployment.
fn link(sandbox: &Sandbox, instance: &Instance) -> (String, Option<IpAddr>) {
    let record = read_json(&sandbox.dir(&instance.as_ref()).join("record.json"));
    let link = &record["launch"]["network"]["link"];
    let kind = link.as_object().and_then(|link| link.keys().next().map(String::as_str)).or(link.as_str());
    let address = link["bridge"]["address"].as_str().map(|address| address.parse().unwrap());
    (kind.unwrap().to_owned(), address)
}

fn port(instance: &Instance, protocol: PortProtocol) -> u16 {
    instance.ports.iter().find(|port| port.protocol == protocol).unwrap().host_port
}

/// CVE-2021-20199: programs trust loopback addresses, as databases do with "trust" for 127.0.0.1.
#[tokio::test]
async fn no_client_of_a_published_port_comes_from_a_loopback_address() {
    let sandbox = Sandbox::new();
    let has_ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    let all = ["0.0.0.0", "127.0.0.1", "::", "::1"].map(|at| at.parse::<IpAddr>().unwrap());
    let (mut slot, mut seen) = (0, BTreeSet::new());
    for network in ["", "\nsandbox: { network: loopback }"] {
        for at in all.into_iter().filter(|at| at.is_ipv4() || has_ipv6) {
            let yaml = telling(&at.to_string()) + PORTS + network;
            let created = sandbox.runtime.create(&request(&yaml, slot)).await.unwrap();
            let instance = sandbox.runtime.start(&created.as_ref()).await.unwrap();
            slot += 1;
            if has_own_network(&sandbox, &instance.as_ref()) {
                let (kind, own) = link(&sandbox, &instance);
                let expected = if at.is_ipv4() { own.unwrap_or(VISITORS) } else { VISITORS_V6 }.to_string();
                let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
                socket.connect((Ipv4Addr::LOCALHOST, port(&instance, PortProtocol::Udp))).unwrap();
                let told = [answer(port(&instance, PortProtocol::Tcp)), asked(&socket, "who")];
                assert_eq!(told, [&*expected, &*expected], "{at}{network}");
                seen.insert(kind);
            }
            sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
        }
    }
    sandbox.runtime.teardown("demo", Volumes::Remove).await.unwrap();
    for (variable, kind) in [(OWN_MACHINE, "bridge"), (WITH, "pasta")] {
        assert!(seen.contains(kind) || std::env::var_os(variable).is_none(), "{seen:?}");
    }
    if seen.is_empty() {
        skip("there are no network namespaces here");
    }
}

/// Connections that are held open and say nothing.
const IDLE: usize = 1500;

#[tokio::test]
async fn a_port_with_many_idle_connections_answers_one_more_and_so_does_another_port() {
    let limit = getrlimit(Resource::Nofile);
    // The helper takes two for each.
    if limit.maximum.is_some_and(|most| most < 2 * IDLE as u64 + 1000) {
        return skip("so many descriptors are not to be had here");
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let sandbox = Sandbox::new();
    let program = "use IO::Socket::IP; \
                   sub serve { $s = IO::Socket::IP->new(LocalHost => \"0.0.0.0\", LocalPort => $_[0], Listen => 4096) or die; \
                               while ($c = $s->accept) { syswrite $c, \"here\"; push @kept, $c } } \
                   fork ? serve(7001) : serve(7002)";
    let ports = "\nport_mappings: [{ container_port: 7001 }, { container_port: 7002 }]\nsandbox: { network: loopback }";
    let instance = sandbox.run(&(perl(program) + ports)).await;
    if !has_own_network(&sandbox, &instance.as_ref()) {
        return skip("there are no network namespaces here");
    }
    let [one, other] = [0, 1].map(|index| instance.ports[index].host_port);
    let ask = |port: u16| -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        assert_eq!(&word, b"here");
        Ok(stream)
    };
    wait_until("both listen", || ask(one).is_ok() && ask(other).is_ok());
    let mut held: Vec<TcpStream> = (0..IDLE).map(|_| ask(one).unwrap()).collect();
    for port in [one, other] {
        ask(port).unwrap();
    }
    held.iter_mut().for_each(|stream| stream.write_all(b"still there").unwrap());
    sandbox.runtime.remove(&instance.as_ref()).await.unwrap();
}
