//! What is shown to a registry, and how it is got: Basic, or a token for one repository.

use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, Uri};
use serde::{Deserialize, Serialize};

use super::bounds::LARGEST_ANSWER;
use super::challenge::{Challenge, may_ask, may_see};
use super::error::quoted;
use super::http::{self, Http, HttpError, Result, refusal, whole};
use super::reference::Reference;
use crate::runtime::credentials::{Credential, Credentials, Secret};

/// What this client calls itself to token servers.
const CLIENT: &str = "keel";

/// Authorization for the repository of one image.
#[derive(Debug)]
pub struct Authorization {
    base: Uri,
    reference: Reference,
    credentials: Credentials,
    /// Held while a token is asked for, so that several requests ask once.
    asking: tokio::sync::Mutex<()>,
    header: Mutex<Option<HeaderValue>>,
}

#[derive(Serialize)]
struct TokenQuery<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    scope: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refresh_token: Option<&'a str>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Authorization {
    /// For the repository of an image, whose registry is at `base`.
    pub fn new(base: Uri, reference: Reference, credentials: Credentials) -> Self {
        let asking = tokio::sync::Mutex::default();
        Self { base, reference, credentials, asking, header: Mutex::default() }
    }

    /// What is shown now.
    pub fn header(&self) -> Option<HeaderValue> {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers a registry that was not content with `shown`.
    ///
    /// # Errors
    /// There is nothing that could be shown, or no token is to be had.
    pub async fn answer(&self, http: &Http, shown: Option<&HeaderValue>, headers: &HeaderMap) -> Result<()> {
        let _asking = self.asking.lock().await;
        if self.header().as_ref() != shown {
            // Another request got a newer one meanwhile.
            return Ok(());
        }
        let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let registry = &self.reference.registry;
        let header = match Challenge::choose(texts) {
            Some(Challenge::Basic) => match self.credentials.of(registry).await {
                Some(Credential { user: Some(user), secret: Secret::Password(password), .. }) => {
                    basic(&user, &password)?
                }
                _ => return Err(HttpError::lasting(format!("it asks for credentials; {}", self.advice()))),
            },
            Some(Challenge::Bearer { realm, service }) => self.token(http, &realm, service.as_deref()).await?,
            None => return Err(HttpError::lasting("it asks for credentials in a way that is not known".to_owned())),
        };
        if shown == Some(&header) {
            return Err(HttpError::lasting(format!("it refuses the credentials; {}", self.advice())));
        }
        *self.header.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
        Ok(())
    }

    /// What somebody can do who has no access.
    pub fn advice(&self) -> String {
        format!("check the reference, or log in with: docker login {}", self.reference.registry)
    }

    /// Asks a token server.
    async fn token(&self, http: &Http, realm: &Uri, service: Option<&str>) -> Result<HeaderValue> {
        let host = realm.authority().map(ToString::to_string).unwrap_or_default();
        if !may_ask(&self.base, realm) {
            let realm = quoted(realm.to_string());
            return Err(HttpError::lasting(format!("it sends to {realm} for a token, where nothing is encrypted")));
        }
        let registry = &self.reference.registry;
        let credential = if may_see(&self.base, realm) {
            self.credentials.of(registry).await
        } else {
            tracing::debug!(
                registry,
                host,
                "the token server is another host; it sees none of the registry's credentials"
            );
            self.credentials.of(&host).await
        };
        let request = self.request(realm, service, credential.as_ref())?;
        let response = http.send(request).await?;
        let failed = |error: HttpError| HttpError {
            message: format!("the token server {host}: {}; {}", error.message, self.advice()),
            ..error
        };
        if !response.status().is_success() {
            return Err(failed(refusal(response).await));
        }
        let body = whole(response.into_body(), LARGEST_ANSWER).await.map_err(failed)?;
        let token = serde_json::from_slice::<Token>(&body)
            .ok()
            .and_then(|token| token.token.or(token.access_token))
            .and_then(|token| sensitive(&format!("Bearer {token}")));
        token.ok_or_else(|| HttpError::lasting(format!("the token server {host} answers without a token")))
    }

    fn request(
        &self,
        realm: &Uri,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Result<Request<Full<Bytes>>> {
        let scope = format!("repository:{}:pull", self.reference.repository);
        let mut query = TokenQuery {
            service,
            scope: &scope,
            account: None,
            client_id: None,
            grant_type: None,
            refresh_token: None,
        };
        let encoded = |query: &TokenQuery<'_>| {
            serde_urlencoded::to_string(query).map_err(|error| HttpError::lasting(error.to_string()))
        };
        let builder = Request::builder().header(USER_AGENT, http::USER_AGENT).header(ACCEPT, "application/json");
        let built = match credential {
            Some(Credential { secret: Secret::IdentityToken(token), .. }) => {
                (query.client_id, query.grant_type) = (Some(CLIENT), Some("refresh_token"));
                query.refresh_token = Some(token);
                builder
                    .method(Method::POST)
                    .uri(realm)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(encoded(&query)?.into())
            }
            Some(Credential { user: Some(user), secret: Secret::Password(password), .. }) => {
                query.account = Some(user);
                let uri = with_query(realm, &encoded(&query)?)?;
                builder.uri(uri).header(AUTHORIZATION, basic(user, password)?).body(Full::default())
            }
            _ => builder.uri(with_query(realm, &encoded(&query)?)?).body(Full::default()),
        };
        built.map_err(|error| HttpError::lasting(error.to_string()))
    }
}

fn basic(user: &str, password: &str) -> Result<HeaderValue> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
        .ok_or_else(|| HttpError::lasting("the credentials can't be sent"))
}

/// A header value that is never shown in logs.
fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn with_query(uri: &Uri, query: &str) -> Result<Uri> {
    let joint = if uri.query().is_some() { '&' } else { '?' };
    format!("{uri}{joint}{query}").parse().map_err(|_| HttpError::lasting("the token server's address is no address"))
}
