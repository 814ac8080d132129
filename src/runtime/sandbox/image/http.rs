//! HTTP as registries need it: one hop at a time, bounded in time and size, over TLS unless the registry is this
//! machine's.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;

use super::bounds::{ANSWER_LIMIT, CONNECT_LIMIT, LARGEST_ANSWER, LONGEST_WAIT};
use super::error::quoted;
use super::reference::{host_of, is_loopback};

/// Time after which a quiet connection is asked whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What this client calls itself.
pub const USER_AGENT: &str = concat!("keel/", env!("CARGO_PKG_VERSION"));

/// How the TLS library begins to say that it does not trust a server.
const DISTRUST: &str = "invalid peer certificate";

/// A request that got no good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpError {
    /// What happened.
    pub message: String,
    /// Whether the same request may succeed soon, and the least wait that the server asked for.
    pub retry: Option<Duration>,
    /// The status, where the server answered.
    pub status: Option<StatusCode>,
}

impl HttpError {
    /// One that another try does not help.
    pub fn lasting(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: None, status: None }
    }

    /// Whether the server speaks TLS and is not trusted.
    pub fn is_distrust(&self) -> bool {
        self.message.contains(DISTRUST)
    }

    /// One that may pass.
    pub fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), retry: Some(Duration::ZERO), status: None }
    }
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, HttpError>;

/// A client.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
}

impl Http {
    /// A client that trusts the machine's certificate authorities, and those in the `*.crt` files of a directory.
    ///
    /// # Errors
    /// A certificate can't be read.
    pub fn new(more: Option<&Path>) -> std::result::Result<Self, String> {
        let mut roots = rustls::RootCertStore::empty();
        // Single certificates of the machine that can't be read are of no consequence; without any the handshake tells.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for (path, certificate) in more.map_or(Ok(Vec::new()), certificates)? {
            roots.add(certificate).map_err(|error| format!("{} can't be used: {error}", path.display()))?;
        }
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_LIMIT));
        http.set_keepalive(Some(KEEPALIVE));
        http.set_nodelay(true);
        let connector = Connector { http, proxies: Arc::new(Matcher::from_env()) };
        let https = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1();
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(https.wrap_connector(connector)) })
    }

    /// Sends a request and waits for the head of its answer, whatever its status.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        match tokio::time::timeout(ANSWER_LIMIT, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let message = format!("{host}: {}", causes(&error));
                // Nobody changes a certificate within seconds.
                let is_distrust = message.contains(DISTRUST);
                Err(if is_distrust { HttpError::lasting(message) } else { HttpError::passing(message) })
            }
            Err(_) => Err(HttpError::passing(format!("{host} did not answer within {} s", ANSWER_LIMIT.as_secs()))),
        }
    }
}

/// An error with all that led to it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    quoted(text)
}

fn certificates(folder: &Path) -> std::result::Result<Vec<(PathBuf, CertificateDer<'static>)>, String> {
    let unreadable = |path: &Path, error: &dyn std::fmt::Display| format!("{} can't be read: {error}", path.display());
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| unreadable(folder, &error))?,
    };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "crt"))
    {
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|error| unreadable(&path, &error))? {
            found.push((path.clone(), certificate.map_err(|error| unreadable(&path, &error))?));
        }
    }
    Ok(found)
}

/// Connects, through the proxy that the environment names (`HTTPS_PROXY`, `NO_PROXY`) where TLS hides what is said.
#[derive(Debug, Clone)]
struct Connector {
    http: HttpConnector,
    proxies: Arc<Matcher>,
}

type Connecting = Pin<Box<dyn Future<Output = std::result::Result<TokioIo<TcpStream>, BoxError>> + Send>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Connecting;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        self.http.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let local = uri.host().is_some_and(|host| is_loopback(host_of(host)));
        let proxy = self.proxies.intercept(&uri).filter(|_| uri.scheme_str() == Some("https") && !local);
        let Some(proxy) = proxy else {
            let connecting = self.http.call(uri);
            return Box::pin(async { connecting.await.map_err(Into::into) });
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.http.clone());
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        let connecting = tunnel.call(uri);
        Box::pin(async { connecting.await.map_err(Into::into) })
    }
}

/// The next piece of a body; `None` at its end.
pub async fn piece(body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        match tokio::time::timeout(ANSWER_LIMIT, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => {
                // Trailers say nothing here.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Ok(Some(Err(error))) => {
                return Err(HttpError::passing(format!("the connection was cut: {}", causes(&error))));
            }
            Err(_) => {
                let limit = ANSWER_LIMIT.as_secs();
                return Err(HttpError::passing(format!("nothing more came for {limit} s")));
            }
        }
    }
}

/// A whole body, of at most this many bytes.
pub async fn whole(mut body: Incoming, most: u64) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(data) = piece(&mut body).await? {
        if (bytes.len() + data.len()) as u64 > most {
            return Err(HttpError::lasting(format!("the answer is longer than {most} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Where a redirect leads; `None` where the response is none.
///
/// # Errors
/// It leads nowhere, or from TLS to an address without.
pub fn redirect(from: &Uri, response: &Response<Incoming>) -> Result<Option<Uri>> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let wrong = |why: &str| Err(HttpError::lasting(format!("it redirects to {}, {why}", quoted(location))));
    let target = if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = location.parse().ok();
        Uri::from_parts(parts).ok()
    } else {
        location.parse::<Uri>().ok()
    };
    let Some(target) = target.filter(|target| target.host().is_some()) else { return wrong("which is no address") };
    match (from.scheme_str(), target.scheme_str()) {
        (_, Some("https")) | (Some("http"), Some("http")) => Ok(Some(target)),
        _ => wrong("where nothing is encrypted"),
    }
}

/// Whether two addresses belong to one server.
pub fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// The error for a status that is no success, with what the server says.
pub async fn refusal(response: Response<Incoming>) -> HttpError {
    let status = response.status();
    let passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
    let retry = passing.then(|| wait(response.headers()));
    let said = whole(response.into_body(), LARGEST_ANSWER).await.unwrap_or_default();
    let said = words(&said);
    let message = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
    HttpError { message, retry, status: Some(status) }
}

/// The wait that a server asks for, in seconds.
fn wait(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
    Duration::from_secs(seconds).min(LONGEST_WAIT)
}

/// What an error of the registry protocol says; nothing where the body is something else.
fn words(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |value: &serde_json::Value, key: &str| value.get(key).and_then(|text| text.as_str()).map(str::to_owned);
    let first = value.get("errors").and_then(|errors| errors.get(0));
    let parts = match first {
        Some(first) => [text(first, "code"), text(first, "message")],
        None => [text(&value, "details"), text(&value, "message")],
    };
    quoted(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_says_is_told_in_short() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\nentry","detail":{}}]}"#;
        assert_eq!(words(body), "DENIED, no\\nentry");
        assert_eq!(words(b"<html>"), "");
        assert_eq!(words(br#"{"message":"slow down"}"#), "slow down");
    }

    #[test]
    fn a_wait_is_bounded() {
        let headers = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(wait(&headers("3")), Duration::from_secs(3));
        assert_eq!(wait(&headers("86400")), LONGEST_WAIT);
        assert_eq!(wait(&headers("soon")), Duration::ZERO);
    }
}
