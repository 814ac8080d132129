//! What a registry asks for before it answers: the `WWW-Authenticate` header (RFC 9110), and to whom credentials may be
//! shown.
//!
//! A registry names the server that gives tokens. Whoever can answer for the registry, such as the storage that a
//! redirect leads to, could so have credentials sent anywhere (CVE-2020-15157). They go to the registry's own host, to a
//! domain above it, and from Docker Hub to its token server; any other server gets what is kept under its own name, or
//! nothing.

use hyper::Uri;

use super::reference::host_of;

/// Longest challenge that is looked at, in bytes.
const LONGEST: usize = 16 << 10;
/// Docker Hub, and the server that gives its tokens.
const DOCKER_HUB: (&str, &str) = ("registry-1.docker.io", "auth.docker.io");

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password.
    Basic,
    /// A token of this server.
    Bearer {
        /// The server.
        realm: Uri,
        /// What the registry is called there.
        service: Option<String>,
    },
}

impl Challenge {
    /// The challenge that can be answered in the values of a response's headers; a token is preferred.
    pub fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let all: Vec<Self> = headers.filter(|text| text.len() <= LONGEST).flat_map(parse).collect();
        all.iter().find(|one| matches!(one, Self::Bearer { .. })).or(all.first()).cloned()
    }
}

/// The challenges of one header.
fn parse(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((scheme, after)) = token(rest) {
        let (parameters, after) = parameters(after);
        let value = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = value("realm").and_then(|realm| realm.parse().ok())
        {
            found.push(Challenge::Bearer { realm, service: value("service") });
        }
        rest = after;
    }
    found
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// A word at the beginning, and what follows.
fn token(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Parameters at the beginning, and what follows: the next challenge begins with a word that no `=` follows.
fn parameters(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    while let Some((name, after)) = token(text)
        && let Some(after) = after.trim_start().strip_prefix('=')
    {
        let (value, after) = value(after.trim_start());
        found.push((name.to_owned(), value));
        text = after;
    }
    (found, text)
}

/// A word or a quoted string at the beginning, and what follows.
fn value(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text.get(..end).unwrap_or_default().to_owned(), text.get(end..).unwrap_or_default());
    };
    let mut value = String::new();
    let mut characters = inner.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, inner.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Whether a token server may be asked at all: over TLS, or, for a registry of this machine without it, in the same
/// place.
pub fn may_ask(registry: &Uri, realm: &Uri) -> bool {
    let Some(authority) = realm.authority() else { return false };
    let plain = || registry.scheme_str() == Some("http") && is_local(registry) && is_local(realm);
    !authority.as_str().contains('@')
        && (realm.scheme_str() == Some("https") || (realm.scheme_str() == Some("http") && plain()))
}

fn is_local(uri: &Uri) -> bool {
    uri.authority().is_some_and(|authority| super::reference::is_loopback(host_of(authority.as_str())))
}

/// Whether the credentials of a registry may be shown to a token server.
pub fn may_see(registry: &Uri, realm: &Uri) -> bool {
    let (Some(own), Some(asked)) = (registry.authority(), realm.authority()) else { return false };
    if !may_ask(registry, realm) || registry.scheme() != realm.scheme() {
        return false;
    }
    let (own_host, asked_host) = (host_of(own.as_str()), host_of(asked.as_str()));
    match registry.scheme_str() {
        // Without TLS nothing proves that another port belongs to the same people.
        Some("http") => own == asked,
        _ => own_host == asked_host || is_above(asked_host, own_host) || (own_host, asked_host) == DOCKER_HUB,
    }
}

/// Whether a domain, not a top-level one, is above another.
fn is_above(domain: &str, below: &str) -> bool {
    domain.contains('.')
        && domain.parse::<std::net::IpAddr>().is_err()
        && below.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(headers: &[&str]) -> Option<Challenge> {
        Challenge::choose(headers.iter().copied())
    }

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.parse().unwrap(), service: service.map(str::to_owned) }
    }

    #[test]
    fn challenges_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a:b:pull,push""#;
        let wanted = bearer("https://auth.docker.io/token", Some("registry.docker.io"));
        assert_eq!(choose(&[hub]), Some(wanted.clone()));
        assert_eq!(choose(&["Basic realm=\"x\"", hub]), Some(wanted.clone()));
        assert_eq!(choose(&[&format!("Basic realm=x, {hub}")]), Some(wanted));
        assert_eq!(choose(&["basic"]), Some(Challenge::Basic));
        assert_eq!(
            choose(&[r#"BEARER Service = "a\"b" , REALM=https://x/"#]),
            Some(bearer("https://x/", Some("a\"b")))
        );
    }

    #[test]
    fn garbage_is_no_challenge_and_does_not_hang() {
        for text in
            ["", ",,,", "\"", "Bearer", "Bearer realm", "Bearer realm=\"", "Negotiate abc==", "=", "Bearer realm=\"\\"]
        {
            assert_eq!(choose(&[text]), None, "{text}");
        }
        assert_eq!(choose(&[&format!("Basic {}", "x=1,".repeat(10_000))]), None);
    }

    #[test]
    fn credentials_are_shown_to_the_registrys_own_people_only() {
        for (registry, realm, ask, see) in [
            ("https://r.example.com", "https://r.example.com/token", true, true),
            ("https://r.example.com", "https://r.example.com:8443/token", true, true),
            ("https://r.example.com", "https://example.com/token", true, true),
            ("https://registry-1.docker.io", "https://auth.docker.io/token", true, true),
            ("https://r.example.com", "https://evil.com/token", true, false),
            ("https://r.example.com", "https://auth.example.com/token", true, false),
            ("https://example.com", "https://r.example.com/token", true, false),
            ("https://example.com", "https://com/token", true, false),
            ("https://badexample.com", "https://example.com/token", true, false),
            ("https://r.example.com", "http://r.example.com/token", false, false),
            ("https://r.example.com", "http://169.254.169.254/token", false, false),
            ("https://r.example.com", "https://me@r.example.com/token", false, false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000/token", true, true),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true, false),
            ("http://127.0.0.1:5000", "https://127.0.0.1:5000/token", true, false),
            ("http://127.0.0.1:5000", "http://example.com/token", false, false),
        ] {
            let (registry, realm): (Uri, Uri) = (registry.parse().unwrap(), realm.parse().unwrap());
            assert_eq!((may_ask(&registry, &realm), may_see(&registry, &realm)), (ask, see), "{registry} {realm}");
        }
    }
}
