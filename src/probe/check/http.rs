//! A GET is answered.

use http_body_util::Empty;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Place, tls};
use crate::probe::schedule::Outcome;
use crate::runtime::Connection;
use crate::state::last_line;

/// What checks call themselves.
const AGENT: &str = concat!("keel/", env!("CARGO_PKG_VERSION"));

pub(super) async fn run(place: &Place<'_>, url: &str, expected: u16) -> Outcome {
    let address = match Address::parse(url) {
        Ok(address) => address,
        Err(why) => return Outcome::NotMade(why),
    };
    match connect(place, &address).await {
        Ok(stream) => answer(stream, &address, url, expected).await,
        Err(Outcome::Failed(why)) => Outcome::Failed(format!("GET {}: {why}", shown(url))),
        Err(outcome) => outcome,
    }
}

/// Whether a GET is answered with the expected status, by whoever `connect` leads to for a host and a port; its error says
/// why it leads nowhere.
pub async fn get(
    url: &str,
    expected: u16,
    connect: impl AsyncFnOnce(&str, u16) -> Result<Box<dyn Connection>, String>,
) -> Outcome {
    let address = match Address::parse(url) {
        Ok(address) => address,
        Err(why) => return Outcome::NotMade(why),
    };
    match connect(&address.host, address.port).await {
        Ok(stream) => answer(stream, &address, url, expected).await,
        Err(why) => Outcome::Failed(format!("GET {}: {why}", shown(url))),
    }
}

/// Asks on a connection, and judges the answer.
async fn answer(stream: Box<dyn Connection>, address: &Address, url: &str, expected: u16) -> Outcome {
    let status = match address.is_https {
        false => ask(stream, address).await,
        true => match tls::wrap(stream, &address.host).await {
            Ok(stream) => ask(Box::new(stream), address).await,
            Err(error) => Err(format!("no TLS: {error}")),
        },
    };
    let url = shown(url);
    match status {
        Ok(status) if status.as_u16() == expected => Outcome::Passed,
        Ok(status) => Outcome::Failed(format!("GET {url} answered {status}, expected {expected}")),
        Err(error) => Outcome::Failed(format!("GET {url}: {}", last_line(&error).unwrap_or_default())),
    }
}

/// An address as it is told: without the user and the query, in which passwords and tokens are.
fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (user, host) = authority.rsplit_once('@').map_or(("", authority), |(_, host)| ("***@", host));
    let (path, query) = rest.split_once('?').map_or((rest, ""), |(path, _)| (path, "?***"));
    let between = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{between}{user}{host}{path}{query}")
}

/// Where a GET goes.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    is_https: bool,
    host: String,
    port: u16,
    /// Host and port as the server is to see them.
    authority: String,
    path: String,
}

impl Address {
    fn parse(url: &str) -> Result<Self, String> {
        let bad = || format!("{:?} is not an address; write http://localhost:8080/health", shown(url));
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let is_https = uri.scheme_str() == Some("https");
        let authority = uri.authority().ok_or_else(bad)?.as_str();
        let authority = authority.rsplit_once('@').map_or(authority, |(_, address)| address).to_owned();
        let host = uri.host().ok_or_else(bad)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { is_https, host, port, authority, path })
    }

    /// Whether it means the instance.
    fn is_inside(&self) -> bool {
        matches!(self.host.to_ascii_lowercase().as_str(), "localhost" | "127.0.0.1" | "::1")
    }
}

async fn connect(place: &Place<'_>, address: &Address) -> Result<Box<dyn Connection>, Outcome> {
    if address.is_inside() {
        return place.dial(address.port).await.map(|dialed| dialed.stream);
    }
    match TcpStream::connect((address.host.as_str(), address.port)).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(Outcome::Failed(format!("connecting to {}: {error}", address.authority))),
    }
}

/// Asks, and waits for the head of the answer.
async fn ask(stream: Box<dyn Connection>, address: &Address) -> Result<StatusCode, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| causes(&error))?;
    let request = Request::get(address.path.as_str())
        .header(HOST, address.authority.as_str())
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The whole answer has arrived, or the connection broke, which the answer tells.
        _ = &mut connection => answer.await,
    };
    answer.as_ref().map(Response::status).map_err(|error| causes(error))
}

/// An error with what led to it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let parsed = |url: &str| {
            let Address { is_https, host, port, authority, path } = Address::parse(url).unwrap();
            (is_https, host, port, authority, path)
        };
        let own = |host: &str, port: u16, authority: &str, path: &str, is_https: bool| {
            (is_https, host.to_owned(), port, authority.to_owned(), path.to_owned())
        };
        for (url, address) in [
            ("http://localhost/", own("localhost", 80, "localhost", "/", false)),
            ("http://localhost:8080/a?b=c", own("localhost", 8080, "localhost:8080", "/a?b=c", false)),
            ("http://localhost:0", own("localhost", 0, "localhost:0", "/", false)),
            ("https://[::1]:8443/x", own("::1", 8443, "[::1]:8443", "/x", true)),
            ("https://a:b@example.org/x", own("example.org", 443, "example.org", "/x", true)),
        ] {
            assert_eq!(parsed(url), address, "{url}");
        }
        assert!(Address::parse("http://").is_err());
    }

    #[test]
    fn an_address_is_told_without_its_secrets() {
        for (url, expected) in [
            ("http://localhost:80/health", "http://localhost:80/health"),
            ("https://u:hunter1@db:9/a?token=hunter2#x", "https://***@db:9/a?***"),
            ("http://u@hunter3@[::1]:9?a@b/c", "http://***@[::1]:9?***"),
            ("http://db/a@b?", "http://db/a@b?***"),
            ("u:hunter4@db", "***@db"),
        ] {
            assert_eq!(shown(url), expected);
        }
        let why = Address::parse("http://u:hunter5@a b/?x=hunter6").unwrap_err();
        assert!(why.starts_with("\"http://***@a b/?***\" is not an address"), "{why}");
    }

    #[tokio::test]
    async fn what_a_get_comes_to_is_told_without_the_secrets_of_its_address() {
        let url = "http://u:hunter1@localhost:9/health?token=hunter2";
        let told = "GET http://***@localhost:9/health?***";
        let refused = get(url, 200, async |_, _| Err("refused".to_owned())).await;
        assert_eq!(refused, Outcome::Failed(format!("{told}: refused")));
        for (answer, expected) in [
            (
                "HTTP/1.1 503 Service Unavailable\r\n\r\n",
                format!("{told} answered 503 Service Unavailable, expected 200"),
            ),
            ("", format!("{told}: connection closed before message completed")),
        ] {
            let connect = async |_: &str, _| {
                let (own, mut other) = tokio::io::duplex(1 << 10);
                tokio::spawn(async move {
                    let _ = other.read(&mut [0; 1 << 10]).await;
                    other.write_all(answer.as_bytes()).await
                });
                Ok(Box::new(own) as Box<dyn Connection>)
            };
            assert_eq!(get(url, 200, connect).await, Outcome::Failed(expected));
        }
    }

    #[test]
    fn loopback_means_the_instance() {
        let inside = |url: &str| Address::parse(url).unwrap().is_inside();
        for url in ["http://localhost:1/", "http://LOCALHOST/", "http://127.0.0.1/", "https://[::1]/"] {
            assert!(inside(url), "{url}");
        }
        assert!(!inside("http://example.org/") && !inside("http://10.0.0.1/"));
    }
}
