//! Which values of a declaration are secrets, by their names and by what they look like. Pure.

use serde_json::{Map, Value};

/// Parts of names that make their value a secret, compared in upper case. The words that CI systems and log
/// scrubbers mask by (Buildkite, GitLab, Sentry).
const SECRET_WORDS: &[&str] =
    &["PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "CREDENTIAL", "AUTH", "PRIVATE", "SIGNATURE"];

/// Further parts that make a variable of the environment a secret; as names of spec fields they are harmless.
const SECRET_VARIABLE_WORDS: &[&str] = &["KEY", "PASS", "_PWD", "DSN", "JWT", "COOKIE", "SESSION", "SALT", "CERT"];

/// Words between the underscores of a name that make a variable a secret, and that are parts of harmless names: a personal
/// access token (GitHub, GitLab, Azure DevOps) is no `PATH`.
const SECRET_WHOLE_WORDS: &[&str] = &["PAT"];

/// Beginnings of tokens that tell what they are, as their issuers document them: GitHub ("GitHub's token formats"), GitLab
/// ("Token prefixes"), Slack ("Token types"), AWS (IAM "unique ID prefixes"), the `sk-` of OpenAI, Anthropic and others, and
/// JSON Web Tokens (RFC 7519), which begin with an encoded `{\"`.
pub(super) const TOKEN_PREFIXES: &[&str] =
    &["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "AKIA", "sk-", "eyJ"];

/// Least characters behind such a beginning: those of the shortest token among them, an access key of AWS. What is shorter
/// is a word that begins alike.
const LEAST_TOKEN: usize = 16;

/// Ends of names to which secrets are assigned inside of a text.
const ASSIGNED_WORDS: &[&str] = &[
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "TOKEN",
    "PWD",
    "API_KEY",
    "API-KEY",
    "APIKEY",
    "ACCESS_KEY",
    "ACCESS-KEY",
    "SECRET_KEY",
    "SECRET-KEY",
    "SECRETKEY",
    "PRIVATE_KEY",
    "PRIVATE-KEY",
    "AUTHORIZATION",
    "CREDENTIAL",
    "_PASS",
    "-PASS",
    "-AUTH",
    "_AUTH",
];

/// Ends of options whose value, the next word, is a secret, besides those of names.
const SECRET_OPTION_WORDS: &[&str] = &["PASS", "CREDENTIALS"];

/// Options whose value is `user:password` (curl, wget and others).
const USER_OPTIONS: &[&str] = &["--user", "--proxy-user"];

/// A short option that gives a password to some programs, and means something else to others.
struct PasswordOption {
    option: &'static str,
    /// What the names of the programs begin with.
    programs: &'static [&'static str],
    /// The verb behind which it stands, where it means something else behind others.
    verb: Option<&'static str>,
}

/// Those of the manuals of MySQL's, MariaDB's and MongoDB's tools and of sshpass, of Redis' and Valkey's, and of what logs in
/// to registries: `docker run -p` is no password.
const PASSWORD_OPTIONS: &[PasswordOption] = &[
    PasswordOption { option: "-p", programs: &["mysql", "mariadb", "mongo", "sshpass"], verb: None },
    PasswordOption {
        option: "-a",
        programs: &["redis-cli", "redis-benchmark", "valkey-cli", "valkey-benchmark"],
        verb: None,
    },
    PasswordOption {
        option: "-p",
        programs: &["docker", "podman", "nerdctl", "buildah", "skopeo", "helm", "oras", "crane"],
        verb: Some("login"),
    },
];

/// Whether a name, in upper case, says that its value is a secret.
pub(super) fn is_named(name: &str) -> bool {
    SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Whether the name of a variable of the environment, in upper case, says that its value is a secret, where its letters
/// alone do not ([`is_named`]).
pub(super) fn is_named_variable(name: &str) -> bool {
    SECRET_VARIABLE_WORDS.iter().any(|word| name.contains(word))
        || name.split(['_', '-', '.']).any(|word| SECRET_WHOLE_WORDS.contains(&word))
}

/// Whether there are secrets in a value whatever its name: it refers to one, it is an address with a password, there is a
/// token in it, or it is a command that is given one.
pub(super) fn are_in(value: &Value) -> bool {
    holds_secret_option(value) || texts(value).any(|text| refers_to_secret(text) || holds_token(text))
}

/// Whether a command is given a secret by an option that is in one of the two lists of its words and has its value, or its
/// program, in the other.
pub(super) fn are_across(fields: &Map<String, Value>) -> bool {
    let (Some(entrypoint), Some(args)) = (fields.get("entrypoint"), fields.get("args")) else { return false };
    let words = texts(entrypoint).chain(texts(args)).map(|word| Value::String(word.to_owned()));
    holds_secret_option(&words.collect())
}

/// Whether a command line holds an option whose value, the next word, is a secret: `--password`, `-token`, `-u me:secret`.
/// The words of one argument count as those of the line: it may be a line for a shell.
fn holds_secret_option(value: &Value) -> bool {
    let is_between = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '(' | ';' | '&' | '|' | '\\');
    let words: Vec<&str> =
        texts(value).flat_map(|text| text.split(is_between)).filter(|word| !word.is_empty()).collect();
    let is_secret = |option: &str| {
        let ends = ASSIGNED_WORDS.iter().chain(SECRET_OPTION_WORDS);
        option.starts_with('-') && ends.into_iter().any(|word| option.to_uppercase().ends_with(word))
    };
    let has_password = |option: &str, value: &str| names_user(option) && holds_password(value);
    words.windows(2).any(|pair| matches!(pair, [option, value] if is_secret(option) || has_password(option, value)))
        || words.iter().any(|word| attached_user(word).is_some_and(holds_password))
        || gives_short_password(&words)
}

/// Whether a program is given a password by a short option: `mysql -pSecret`, `sshpass -p secret`, `docker login -p secret`.
fn gives_short_password(words: &[&str]) -> bool {
    PASSWORD_OPTIONS.iter().any(|PasswordOption { option, programs, verb }| {
        let is_program = |word: &str| {
            word.rsplit('/').next().is_some_and(|name| programs.iter().any(|known| name.starts_with(known)))
        };
        let behind = words.iter().skip_while(|word| !is_program(word)).skip(1);
        let mut options = behind.skip_while(|word| verb.is_some_and(|verb| verb != **word));
        options.any(|word| word.starts_with(option))
    })
}

/// Whether an option's value, the next word, is a user: `--user`, `-u`, or `-sSu`, where others stand before it.
fn names_user(option: &str) -> bool {
    let short = option.strip_prefix('-').filter(|letters| letters.bytes().all(|letter| letter.is_ascii_alphabetic()));
    USER_OPTIONS.contains(&option) || short.is_some_and(|letters| letters.ends_with(['u', 'U']))
}

/// The user that one word names: `--user=me:x`, `-ume:x`.
fn attached_user(word: &str) -> Option<&str> {
    let long = || word.split_once('=').filter(|(option, _)| USER_OPTIONS.contains(option)).map(|(_, user)| user);
    word.strip_prefix("-u").or_else(|| word.strip_prefix("-U")).or_else(long)
}

/// Whether a text is `user:password`, and not two numbers, as those of a user and a group.
fn holds_password(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once(':')
        .is_some_and(|(user, password)| !(password.is_empty() || is_number(user) && is_number(password)))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let own = value.as_str();
    let items = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    own.into_iter().chain(items)
}

/// `$S:name`, `scheme://user:password@host`, or an assignment to a name that says so, as in `?password=x` and `--token=x`.
fn refers_to_secret(text: &str) -> bool {
    // A comma or a quote may be part of the password: rather one address too many is masked.
    let has_password = |rest: &str| {
        let authority = rest.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    };
    let password_in_address = text.split("://").skip(1).any(has_password);
    // A value in quotes is none of its own.
    let text = text.replace(" =", "=").replace("= ", "=").replace("=\"", "=").replace("='", "=");
    let text = text.as_str();
    let is_secret = |name: &str| {
        let name = name.to_uppercase();
        ASSIGNED_WORDS.iter().any(|word| name.ends_with(word))
    };
    let parts = || text.split(['?', '&', ';', ',', ' ', '\t', '\n', '"', '\'']).filter(|part| !part.is_empty());
    let assigned =
        parts().any(|part| part.split_once('=').is_some_and(|(name, value)| !value.is_empty() && is_secret(name)));
    // A header of a request: its value is in the same part, or the words after it.
    let mut words = parts().skip_while(|part| !part.split_once(':').is_some_and(|(name, _)| is_secret(name)));
    // A name and its value in JSON.
    let mut names = parts().zip(parts().skip(1)).filter(|(_, next)| next.starts_with(':'));
    let in_json = names.any(|(name, _)| is_secret(name));
    let in_header = words.next().is_some_and(|header| !header.ends_with(':') || words.next().is_some());
    text.starts_with("$S:")
        || text.contains("PRIVATE KEY-----")
        || text.contains("Bearer ")
        || password_in_address
        || assigned
        || in_header
        || in_json
}

/// Whether there is a token in it that tells what it is.
fn holds_token(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let is_token = |part: &str| {
        TOKEN_PREFIXES.iter().any(|prefix| part.strip_prefix(prefix).is_some_and(|rest| rest.len() >= LEAST_TOKEN))
    };
    text.split(|c| !is_part(c)).any(is_token)
}
