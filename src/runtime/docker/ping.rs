//! Asks an engine who it is and which version of the API it speaks.
//!
//! bollard agrees on the version by `GET /version`, for which Podman runs three programs: that was seen to take 18 s
//! on a busy machine. The headers of `GET /_ping` say the same in a millisecond, and bollard does not show them.

use std::path::Path;

use bollard::errors::Error;
use bollard::{API_DEFAULT_VERSION, ClientVersion};
use hyper::header::HeaderMap;

use super::lenient::get;

/// The engines that speak this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Product {
    /// Docker Engine, and whatever takes itself for it.
    Docker,
    /// Podman's service.
    Podman,
}

/// What an engine says of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pong {
    /// Which engine it is.
    pub product: Product,
    /// The newest version of the API that both sides speak.
    pub version: ClientVersion,
}

/// Asks the engine behind a socket. The caller bounds the time.
///
/// # Errors
/// Nobody answers there, or somebody that is no engine.
pub(super) async fn ping(socket: &Path) -> Result<Pong, Error> {
    let (headers, _) = get(socket, "/_ping").await?;
    Ok(pong(&headers))
}

fn pong(headers: &HeaderMap) -> Pong {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let product = if text("Server").starts_with("Libpod/") { Product::Podman } else { Product::Docker };
    let theirs = text("Api-Version").split_once('.').and_then(|(major, minor)| {
        Some(ClientVersion { major_version: major.parse().ok()?, minor_version: minor.parse().ok()? })
    });
    let version = match theirs {
        Some(theirs) if theirs < *API_DEFAULT_VERSION => theirs,
        _ => *API_DEFAULT_VERSION,
    };
    Pong { product, version }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_older_side_gives_the_version() {
        let old = pong(&headers(&[("Api-Version", "1.41"), ("Server", "Docker/20.10.24+dfsg1 (linux)")]));
        let version = ClientVersion { major_version: 1, minor_version: 41 };
        assert_eq!(old, Pong { product: Product::Docker, version });
        let newer = pong(&headers(&[("Api-Version", "1.99")]));
        assert_eq!(newer.version, *API_DEFAULT_VERSION);
    }

    #[test]
    fn podman_is_known_by_its_server_header() {
        let podman = pong(&headers(&[("Api-Version", "1.41"), ("Server", "Libpod/4.3.1 (linux)")]));
        assert_eq!(podman.product, Product::Podman);
    }
}
