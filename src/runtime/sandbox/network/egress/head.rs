//! Requests to a proxy: what they want, and what is passed on. Pure.

use super::policy::Host;

/// Most header fields of a request; Apache allows 100.
const MOST_FIELDS: usize = 100;
/// Port of HTTP.
const HTTP: u16 = 80;
/// Fields that are between a client and its proxy (RFC 9110, section 7.6.1), and those that are written anew.
const NOT_PASSED: &[&str] = &[
    "host",
    "connection",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "keep-alive",
    "te",
    "upgrade",
];

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where to.
    pub host: Host,
    /// On which port.
    pub port: u16,
    /// How.
    pub kind: Kind,
    /// Length of the head, in bytes; what follows goes to the host.
    pub length: usize,
}

/// How a client talks to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// As it likes, once it is connected.
    Tunnel,
    /// By this request.
    Plain(Vec<u8>),
}

/// Reads the head of a request; nothing as long as it is not all there.
///
/// # Errors
/// What is wrong with it.
pub fn parse(bytes: &[u8]) -> Result<Option<Request>, &'static str> {
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("this is no request of HTTP"),
    };
    let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
    if method == "CONNECT" {
        let (host, port) = authority(target, None).ok_or("CONNECT needs HOST:PORT")?;
        return Ok(Some(Request { host, port, kind: Kind::Tunnel, length }));
    }
    let rest = strip_scheme(target).ok_or("this is a proxy: ask for http://HOST/PATH, or CONNECT to HOST:PORT")?;
    let (place, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let (host, port) = authority(place, Some(HTTP)).ok_or("the address has no host that can be read")?;
    let slash = if path.starts_with('/') { "" } else { "/" };
    // One request for each connection: the next one may be for another host.
    let mut passed = format!("{method} {slash}{path} HTTP/1.1\r\nHost: {place}\r\nConnection: close\r\n").into_bytes();
    for field in head.headers.iter().filter(|field| !NOT_PASSED.contains(&field.name.to_ascii_lowercase().as_str())) {
        passed.extend(field.name.bytes().chain(*b": ").chain(field.value.iter().copied()).chain(*b"\r\n"));
    }
    passed.extend(b"\r\n");
    Ok(Some(Request { host, port, kind: Kind::Plain(passed), length }))
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    scheme.eq_ignore_ascii_case("http").then_some(rest)
}

/// Host and port; an address of IPv6 is in brackets. Nobody's name and password are in front.
fn authority(text: &str, default: Option<u16>) -> Option<(Host, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (text, default),
    };
    let is_bare_v6 = host.contains(':') && !host.starts_with('[');
    let port = port.filter(|port| *port != 0 && !is_bare_v6)?;
    Some((Host::parse(host)?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Request>, &'static str> {
        parse(text.as_bytes())
    }

    fn name(text: &str) -> Host {
        Host::Name(text.into())
    }

    #[test]
    fn a_tunnel_goes_where_it_says() {
        let text = "CONNECT Example.org:443 HTTP/1.1\r\nHost: other.test\r\n\r\nrest";
        let expected = Request { host: name("example.org"), port: 443, kind: Kind::Tunnel, length: text.len() - 4 };
        assert_eq!(read(text), Ok(Some(expected)));
        let v6 = read("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n").unwrap().unwrap();
        assert_eq!((v6.host, v6.port), (Host::Address("2001:db8::1".parse().unwrap()), 443));
    }

    #[test]
    fn a_plain_request_is_passed_on_to_the_host_that_it_names() {
        let text = "GET http://example.org/a?b HTTP/1.1\r\nHost: denied.test\r\nAccept: */*\r\nProxy-Authorization: x\r\n\
                    Connection: keep-alive\r\n\r\n";
        let request = read(text).unwrap().unwrap();
        let passed = "GET /a?b HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\nAccept: */*\r\n\r\n";
        assert_eq!((request.host, request.port), (name("example.org"), 80));
        assert_eq!(request.kind, Kind::Plain(passed.as_bytes().to_vec()));
        let bare = read("GET HTTP://example.org:8080?q HTTP/1.1\r\n\r\n").unwrap().unwrap();
        assert_eq!(bare.port, 8080);
        let passed = "GET /?q HTTP/1.1\r\nHost: example.org:8080\r\nConnection: close\r\n\r\n";
        assert_eq!(bare.kind, Kind::Plain(passed.as_bytes().to_vec()));
    }

    #[test]
    fn half_a_head_is_waited_for() {
        assert_eq!(read("CONNECT example.org:443 HTTP/1.1\r\nHost: exa"), Ok(None));
        assert_eq!(read(""), Ok(None));
    }

    #[test]
    fn what_names_no_host_is_refused() {
        for target in [
            "CONNECT example.org",
            "CONNECT example.org:0",
            "CONNECT example.org:99999",
            "CONNECT ::1:443",
            "CONNECT user@example.org:443",
            "CONNECT :443",
            "GET /path",
            "GET https://example.org/",
            "GET ftp://example.org/",
            "GET http://user:password@example.org/",
            "GET http:///path",
            "GET *",
        ] {
            assert!(read(&format!("{target} HTTP/1.1\r\n\r\n")).is_err(), "{target}");
        }
        assert!(read("\x16\x03\x01\x02\x00").is_err());
    }
}
