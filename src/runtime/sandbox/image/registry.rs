//! The registry protocol (OCI distribution): manifests and blobs of one repository.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, RANGE, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};

use super::authorize::Authorization;
use super::bounds::{LARGEST_MANIFEST, MOST_REDIRECTS, SCHEME_LIMIT};
use super::digest::Digest;
use super::document::{ACCEPTED, Descriptor};
use super::error::{ImageError, Result};
use super::http::{self, Http, HttpError, redirect, refusal, same_origin, whole};
use super::reference::{Reference, Selector};
use super::tries::Tries;
use crate::runtime::credentials::Credentials;
use crate::runtime::transfers::{Teller, awaited, refused};

/// Header with the digest of what is sent.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Where Docker keeps certificate authorities of single registries, in directories named after host and port.
pub const CERTIFICATES: &str = "/etc/docker/certs.d";

/// What is needed to talk to registries.
#[derive(Debug, Clone)]
pub struct Access {
    /// Credentials.
    pub credentials: Credentials,
    /// Directory with a directory of certificate authorities per registry.
    pub certificates: PathBuf,
}

/// One repository of a registry.
pub struct Registry<'a> {
    http: Http,
    base: Uri,
    reference: Reference,
    authorization: Authorization,
    /// Whom it is told why a request is tried again.
    tell: Teller<'a>,
}

/// A manifest as it came.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes, whose digest was checked.
    pub bytes: Bytes,
    /// Its digest.
    pub digest: Digest,
    /// What the registry says that it is.
    pub media_type: Option<String>,
}

impl<'a> Registry<'a> {
    /// Prepares to talk to the registry of an image; that one is waited for is told.
    ///
    /// # Errors
    /// Its certificate authorities can't be read.
    pub async fn open(reference: &Reference, access: &Access, tell: Teller<'a>) -> Result<Self> {
        tell(awaited(&reference.registry));
        let folder = access.certificates.clone().join(folder_name(&reference.registry));
        let http = tokio::task::spawn_blocking(move || Http::new(Some(Path::new(&folder))))
            .await
            .map_err(|error| ImageError::Failed(error.to_string()))?
            .map_err(ImageError::unavailable)?;
        let scheme = if reference.is_local() { local_scheme(&http, reference.authority()).await } else { "https" };
        let base: Uri = format!("{scheme}://{}/", reference.authority())
            .parse()
            .map_err(|_| ImageError::unavailable(format!("{:?} is no registry", reference.registry)))?;
        let authorization = Authorization::new(base.clone(), reference.clone(), access.credentials.clone());
        Ok(Self { http, base, reference: reference.clone(), authorization, tell })
    }

    /// The digest that a reference stands for now, where the registry tells without sending the manifest. It is asked
    /// once.
    ///
    /// # Errors
    /// The registry does not answer. A refusal is none: why it refuses is told by the request for the manifest.
    pub async fn current(&self, selector: &Selector) -> Result<Option<Digest>> {
        let uri = self.uri("manifests", &selector.to_string())?;
        match self.send(Method::HEAD, &uri, Some(ACCEPTED), None).await {
            Ok(response) => {
                let digest = response.headers().get(CONTENT_DIGEST).and_then(|told| told.to_str().ok());
                Ok(digest.and_then(|digest| digest.parse().ok()))
            }
            Err(error) if error.status.is_none() => Err(self.explain(error)),
            Err(_) => Ok(None),
        }
    }

    /// A manifest or index.
    pub async fn manifest(&self, selector: &Selector) -> Result<Fetched> {
        let uri = self.uri("manifests", &selector.to_string())?;
        let fetch = || async {
            let response = self.send(Method::GET, &uri, Some(ACCEPTED), None).await?;
            let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            let (told, media_type) = (header(CONTENT_DIGEST), header(CONTENT_TYPE));
            let bytes = whole(response.into_body(), LARGEST_MANIFEST).await?;
            Ok((bytes, told, media_type))
        };
        let (bytes, told, media_type) = self.retrying(fetch).await?;
        let digest = Digest::of(&bytes);
        let wanted = match selector {
            Selector::Digest(wanted) => Some(wanted.clone()),
            // Another algorithm is nobody's mistake.
            Selector::Tag(_) => told.and_then(|told| told.parse().ok()),
        };
        match wanted {
            Some(wanted) if wanted != digest => {
                Err(self.wrong(format!("the manifest {wanted} came with the content of {digest}")))
            }
            _ => Ok(Fetched {
                bytes,
                digest,
                media_type: media_type.and_then(|kind| kind.split(';').next().map(str::to_owned)),
            }),
        }
    }

    /// A small blob, whole.
    pub async fn small(&self, wanted: &Descriptor, most: u64) -> Result<Bytes> {
        if wanted.size > most {
            return Err(self.wrong(format!("{} has {} bytes, more than {most}", wanted.digest, wanted.size)));
        }
        let uri = self.uri("blobs", &wanted.digest.to_string())?;
        let fetch = || async { whole(self.send(Method::GET, &uri, None, None).await?.into_body(), wanted.size).await };
        let bytes = self.retrying(fetch).await?;
        let digest = Digest::of(&bytes);
        if digest != wanted.digest {
            return Err(self.wrong(format!("{} came with the content of {digest}", wanted.digest)));
        }
        Ok(bytes)
    }

    /// A blob from this byte on, in one try.
    pub async fn blob(&self, digest: &Digest, from: u64) -> http::Result<Response<Incoming>> {
        let uri = self.uri("blobs", &digest.to_string()).map_err(|error| HttpError::lasting(error.to_string()))?;
        self.send(Method::GET, &uri, None, (from > 0).then_some(from)).await
    }

    /// The error for something that the registry should not have sent.
    pub fn wrong(&self, message: String) -> ImageError {
        ImageError::Unavailable(format!("the registry {}: {message}", self.reference.registry))
    }

    fn uri(&self, kind: &str, name: &str) -> Result<Uri> {
        format!("{}v2/{}/{kind}/{name}", self.base, self.reference.repository)
            .parse()
            .map_err(|_| ImageError::unavailable(format!("{:?} is no repository", self.reference.repository)))
    }

    /// Does a request until it succeeds, fails for good, or was tried often or long enough.
    async fn retrying<T, F: Future<Output = http::Result<T>>>(&self, request: impl Fn() -> F) -> Result<T> {
        let mut tries = Tries::first();
        loop {
            match request().await {
                Ok(done) => {
                    if tries.are_several() {
                        (self.tell)(awaited(&self.reference.registry));
                    }
                    return Ok(done);
                }
                Err(error) => match tries.again(&error) {
                    Some(wait) => self.pause(&error.message, wait).await,
                    None => return Err(self.explain(error)),
                },
            }
        }
    }

    /// Waits before another try, and tells what came of the last one.
    pub async fn pause(&self, why: &str, wait: Duration) {
        (self.tell)(refused(&self.reference.registry, why, wait));
        tokio::time::sleep(wait).await;
    }

    /// An error in words for the user.
    pub fn explain(&self, error: HttpError) -> ImageError {
        let advice = match error.status {
            Some(StatusCode::NOT_FOUND) => "; check the reference".to_owned(),
            Some(StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => format!("; {}", self.authorization.advice()),
            _ => String::new(),
        };
        self.wrong(format!("{}{advice}", error.message))
    }

    /// Sends a request, follows redirects, and answers a challenge of the registry itself.
    async fn send(
        &self,
        method: Method,
        uri: &Uri,
        accept: Option<&str>,
        from: Option<u64>,
    ) -> http::Result<Response<Incoming>> {
        for round in 0..2 {
            let shown = self.authorization.header();
            let (response, at) = self.follow(&method, uri, accept, from, shown.as_ref()).await?;
            let challenged = response.status() == StatusCode::UNAUTHORIZED && same_origin(&at, &self.base);
            if challenged && round == 0 {
                self.authorization.answer(&self.http, shown.as_ref(), response.headers()).await?;
                continue;
            }
            return if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) };
        }
        Err(HttpError::lasting("it refuses its own token"))
    }

    /// Follows redirects. Only the registry itself sees what is shown to it. Returns where the answer came from.
    async fn follow(
        &self,
        method: &Method,
        uri: &Uri,
        accept: Option<&str>,
        from: Option<u64>,
        shown: Option<&hyper::header::HeaderValue>,
    ) -> http::Result<(Response<Incoming>, Uri)> {
        let mut at = uri.clone();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::builder().method(method).uri(&at).header(USER_AGENT, http::USER_AGENT);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(from) = from {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(shown) = shown.filter(|_| same_origin(&at, &self.base)) {
                request = request.header(AUTHORIZATION, shown);
            }
            let request = request.body(Full::default()).map_err(|error| HttpError::lasting(error.to_string()))?;
            let response = self.http.send(request).await?;
            match redirect(&at, &response)? {
                Some(next) => at = next,
                None => return Ok((response, at)),
            }
        }
        Err(HttpError::lasting(format!("it redirects more than {MOST_REDIRECTS} times")))
    }
}

/// The length that a response announces.
pub fn announced(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The name of a registry as a directory; brackets and colons are fine there, slashes are none of a registry's.
fn folder_name(registry: &str) -> String {
    let name: String = registry.chars().filter(|c| *c != '/').collect();
    if name.is_empty() || name.starts_with('.') { "_".to_owned() } else { name }
}

/// Whether a registry of this machine speaks TLS: Docker, too, tries that first.
async fn local_scheme(http: &Http, authority: &str) -> &'static str {
    let ping = async {
        let request = Request::builder()
            .uri(format!("https://{authority}/v2/"))
            .header(USER_AGENT, http::USER_AGENT)
            .body(Full::default())
            .map_err(|error| HttpError::lasting(error.to_string()))?;
        http.send(request).await
    };
    match tokio::time::timeout(SCHEME_LIMIT, ping).await {
        Ok(Ok(_)) => "https",
        Ok(Err(error)) if error.is_distrust() => "https",
        Ok(Err(_)) | Err(_) => "http",
    }
}
