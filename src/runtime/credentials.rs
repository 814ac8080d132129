//! Credentials of registries, from the file that `docker login` and `podman login` write.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

/// Time for a credential helper; some of them ask a cloud's server.
const HELPER_DEADLINE: Duration = Duration::from_secs(30);
/// What a helper says of a registry that it has nothing for: `errCredentialsNotFoundMessage` of docker-credential-helpers.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// The name that Docker Hub's credentials are kept under.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// User name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What proves to a registry who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credential {
    /// The name that it is kept under.
    pub(super) server: String,
    /// The user; an identity token need not name one.
    pub(super) user: Option<String>,
    /// The proof.
    pub(super) secret: Secret,
}

/// The secret part of a [`Credential`].
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    /// A password, for HTTP's Basic scheme.
    Password(String),
    /// A refresh token of OAuth2.
    IdentityToken(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Where credentials are looked for.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    file: Option<PathBuf>,
}

/// The parts of the file that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: HashMap<String, Auth>,
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a helper prints.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Why a helper gives no credential.
#[derive(Debug, PartialEq, Eq)]
enum Unanswered {
    /// It has none for this registry, which most need none of.
    Unknown,
    /// It can't be run, or can't look.
    Failed(String),
}

impl Credentials {
    /// From `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub(super) fn from_env(env: impl Fn(&str) -> Option<String>) -> Self {
        let dir = env("DOCKER_CONFIG")
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .or_else(|| env("HOME").map(|home| PathBuf::from(home).join(".docker")));
        Self { file: dir.map(|dir| dir.join("config.json")) }
    }

    /// From the `config.json` of this directory.
    pub(super) fn in_dir(dir: PathBuf) -> Self {
        Self { file: Some(dir.join("config.json")) }
    }

    /// The credential for a registry, by its host and port, where there is one. A file or helper that can't be read is
    /// reported in the log, and the pull goes on without: most images need none.
    pub(super) async fn of(&self, registry: &str) -> Option<Credential> {
        let path = self.file.as_ref()?;
        let text = match tokio::fs::read(path).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "registry credentials can't be read; pulling without");
                return None;
            }
        };
        let file: ConfigFile = match serde_json::from_slice(&text) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "registry credentials can't be read; pulling without");
                return None;
            }
        };
        let server = if registry == "docker.io" { DOCKER_HUB } else { registry };
        let Some(helper) = helper(&file, registry, server) else { return stored(&file, registry, server) };
        match ask(helper, server).await {
            Ok(answer) => Some(from_helper(answer, server)),
            Err(Unanswered::Unknown) => stored(&file, registry, server),
            Err(Unanswered::Failed(problem)) => {
                tracing::warn!(server, problem, "the credential helper failed; pulling without what it holds");
                stored(&file, registry, server)
            }
        }
    }
}

/// The helper that answers for a registry: its own one first.
fn helper<'a>(file: &'a ConfigFile, registry: &str, server: &str) -> Option<&'a str> {
    let own = [registry, server].iter().find_map(|name| file.cred_helpers.get(*name));
    own.or(file.creds_store.as_ref()).map(String::as_str).filter(|helper| !helper.is_empty())
}

/// What is written in the file itself.
fn stored(file: &ConfigFile, registry: &str, server: &str) -> Option<Credential> {
    let (_, auth) = file.auths.iter().find(|(name, _)| *name == server || host(name) == registry)?;
    let (user, password) = match &auth.auth {
        Some(encoded) if !encoded.is_empty() => decode(encoded)?,
        _ => (auth.username.clone()?, auth.password.clone().unwrap_or_default()),
    };
    let secret = match auth.identitytoken.clone().filter(|token| !token.is_empty()) {
        Some(token) => Secret::IdentityToken(token),
        None => Secret::Password(password),
    };
    Some(Credential { server: server.to_owned(), user: Some(user), secret })
}

/// The host of a name as old versions of Docker wrote it, with scheme and path.
fn host(name: &str) -> &str {
    let bare = name.split_once("://").map_or(name, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or(bare) {
        "index.docker.io" => "docker.io",
        host => host,
    }
}

/// User and password from `base64(user:password)`.
fn decode(encoded: &str) -> Option<(String, String)> {
    let bytes = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

fn from_helper(answer: HelperAnswer, server: &str) -> Credential {
    let HelperAnswer { username, secret } = answer;
    let server = server.to_owned();
    if username == TOKEN_USER {
        Credential { server, user: None, secret: Secret::IdentityToken(secret) }
    } else {
        Credential { server, user: Some(username), secret: Secret::Password(secret) }
    }
}

/// Runs `docker-credential-HELPER get` with the server's name on its standard input.
async fn ask(helper: &str, server: &str) -> Result<HelperAnswer, Unanswered> {
    let program = format!("docker-credential-{helper}");
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_DEADLINE, run).await {
        Ok(output) => output.map_err(|error| Unanswered::Failed(format!("{program}: {error}")))?,
        Err(_) => return Err(Unanswered::Failed(format!("{program} did not answer within {HELPER_DEADLINE:?}"))),
    };
    read_answer(&program, output.status.success(), &output.stdout)
}

/// What a helper's output says. What went wrong is told on standard output too.
fn read_answer(program: &str, succeeded: bool, output: &[u8]) -> Result<HelperAnswer, Unanswered> {
    if succeeded {
        return serde_json::from_slice(output).map_err(|error| Unanswered::Failed(format!("{program}: {error}")));
    }
    let text = String::from_utf8_lossy(output);
    match text.trim() {
        NOT_FOUND => Err(Unanswered::Unknown),
        problem => Err(Unanswered::Failed(format!("{program}: {problem}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn password(user: &str) -> Credential {
        let secret = Secret::Password("secret".to_owned());
        Credential { server: "registry.example".to_owned(), user: Some(user.to_owned()), secret }
    }

    #[test]
    fn a_helper_gives_a_password_or_a_token() {
        let answer = |username: &str| HelperAnswer { username: username.to_owned(), secret: "secret".to_owned() };
        let given = |username| from_helper(answer(username), "registry.example");
        assert_eq!(given("me"), password("me"));
        let token = Secret::IdentityToken("secret".to_owned());
        assert_eq!(given("<token>"), Credential { server: "registry.example".to_owned(), user: None, secret: token });
    }

    #[test]
    fn a_helper_that_fails_is_told_from_one_that_knows_nothing_of_a_registry() {
        let read = |succeeded, output: &str| read_answer("docker-credential-x", succeeded, output.as_bytes()).err();
        assert_eq!(read(false, "credentials not found in native keychain\n"), Some(Unanswered::Unknown));
        let failed = |text: &str| Some(Unanswered::Failed(format!("docker-credential-x: {text}")));
        assert_eq!(read(false, "the keychain is locked\n"), failed("the keychain is locked"));
        assert_eq!(read(true, "{"), failed("EOF while parsing an object at line 1 column 1"));
    }

    #[test]
    fn what_is_stored_is_found_by_every_name_that_docker_writes() {
        let auth = STANDARD.encode("me:secret");
        let table = [
            ("registry.example", json!({ "auth": auth })),
            ("https://registry.example/v2/", json!({ "auth": auth })),
            ("registry.example", json!({ "username": "me", "password": "secret" })),
        ];
        for (name, entry) in table {
            let file: ConfigFile = serde_json::from_value(json!({ "auths": { name: entry } })).unwrap();
            let found = stored(&file, "registry.example", "registry.example");
            assert_eq!(found, Some(password("me")), "{name}: {entry}");
            assert_eq!(stored(&file, "docker.io", DOCKER_HUB), None);
        }
    }

    #[test]
    fn docker_hub_has_names_of_its_own() {
        let helpers = json!({ "credHelpers": { DOCKER_HUB: "hub" }, "credsStore": "store" });
        let file: ConfigFile = serde_json::from_value(helpers).unwrap();
        assert_eq!(helper(&file, "docker.io", DOCKER_HUB), Some("hub"));
        assert_eq!(helper(&file, "registry.example", "registry.example"), Some("store"));
        let empty: ConfigFile = serde_json::from_value(json!({ "credsStore": "" })).unwrap();
        assert_eq!(helper(&empty, "docker.io", DOCKER_HUB), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", password("me")), "Credential { server: \"registry.example\", .. }");
    }
}
