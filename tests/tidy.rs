//! The rules of the house: who may import whom, where library types and unsafe code may be, and what may be depended on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who may use whom, as the crate documentation says.
const MAY_USE: &[(&str, &[&str])] = &[
    ("spec", &[]),
    ("clock", &[]),
    ("state", &["spec"]),
    ("plan", &["spec", "state"]),
    ("runtime", &["spec", "state", "clock"]),
    ("probe", &["spec", "state", "runtime", "clock"]),
    ("store", &["spec", "state"]),
    ("source", &["spec", "state", "store", "clock"]),
    ("execute", &["plan", "spec", "state", "runtime", "probe"]),
    ("status", &["spec", "state", "plan"]),
    ("controller", &["spec", "state", "plan", "source", "runtime", "probe", "execute", "status", "store", "clock"]),
];

/// Libraries whose types stay inside of one place.
const STAYS_IN: &[(&str, &str)] = &[
    ("bollard", "src/runtime/docker"),
    ("rusqlite", "src/store"),
    ("notify", "src/source"),
    ("saphyr_parser", "src/spec"),
    ("axum", "src/api"),
    ("flate2", "src/runtime/sandbox/image"),
    ("hyper_rustls", "src/runtime/sandbox/image"),
    ("rustls", "src/runtime/sandbox/image"),
    ("tokio_rustls", "src/probe/check"),
    ("ruzstd", "src/runtime/sandbox/image"),
    ("netlink_packet_core", "src/runtime/sandbox/network"),
    ("netlink_packet_route", "src/runtime/sandbox/network"),
    ("rustix", "src/runtime/sandbox"),
    ("libc", "src/runtime/sandbox"),
];

/// Exceptions to the above, with the reason.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("axum", "src/cli/demo_server.rs", "the demo is an HTTP server"),
    ("rustls", "src/probe/check", "health checks of https addresses"),
    ("rustix", "src/api/doors.rs", "how many files this process may have open"),
    ("rustls", "src/runtime/sandbox/network/egress/greeting.rs", "reads the name that a client of TLS asks for"),
    ("rustix", "src/cli/terminal.rs", "mode and size of the terminal"),
    ("rustix", "src/source/read.rs", "opens what is no regular file without waiting for it, and tells mount points"),
    ("rustix", "src/store", "whether a directory belongs to this user"),
    ("rustix", "src/runtime/docker/mod.rs", "this user's id is part of the path of an engine's socket"),
    ("rustix", "src/runtime/docker/error.rs", "the numbers of the errors that tell of too many open files"),
    ("rustix", "src/runtime/seatbelt", "system calls of every Unix: terminals, locks, signals"),
    ("notify", "src/runtime/seatbelt/watch.rs", "tells of changes of instances on every Unix"),
    ("rustix", "src/runtime/file_lock.rs", "locks of files, of both sandbox runtimes"),
    ("libc", "src/runtime/files.rs", "flags of files that are never reached through a link"),
    ("rustix", "src/runtime/process_tree.rs", "kills what a command inside an instance started"),
    ("libc", "src/source/watcher.rs", "the number of the error that tells of too many watches"),
];

/// Licences that ask for nothing but their notice.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file below `folder`, with its text.
fn sources(folder: &str) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a text file");
                files.insert(path.strip_prefix(root()).expect("inside of the project").to_owned(), text);
            }
        }
    }
    files
}

/// The part of a file that is not its tests, which end it.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn is_word_at(text: &str, at: usize, word: &str) -> bool {
    let boundary = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    boundary(text[..at].chars().next_back()) && boundary(text[at + word.len()..].chars().next())
}

/// Lines of code, without comments, that hold the word.
fn lines_with<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| {
        let code = line.split("//").next().unwrap_or(line);
        code.match_indices(word).any(|(at, _)| is_word_at(code, at, word))
    })
}

/// Whether code outside of tests names something of the library.
fn uses(text: &str, library: &str) -> bool {
    let path = format!("{library}::");
    production(text).lines().any(|line| {
        let code = line.split("//").next().unwrap_or(line);
        code.match_indices(&path).any(|(at, _)| is_word_at(code, at, library))
    })
}

#[test]
fn modules_use_only_what_they_may() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = path.components().nth(1).map(|part| part.as_os_str().to_string_lossy().replace(".rs", ""));
        let Some((module, may)) = MAY_USE.iter().find(|(name, _)| Some(*name) == module.as_deref()) else { continue };
        for (at, _) in production(&text).match_indices("crate::") {
            let used: String =
                text[at + "crate::".len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if used != *module && !may.contains(&used.as_str()) {
                wrong.push(format!("{}: {module} may not use {used}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn library_types_stay_in_their_adapter() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        for (library, home) in STAYS_IN {
            let allowed = ALLOWED.iter().any(|(name, place, _)| name == library && path.starts_with(place));
            if !path.starts_with(home) && !allowed && uses(&text, library) {
                wrong.push(format!("{}: {library} belongs into {home}", path.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn exceptions_are_in_use() {
    let sources = sources("src");
    let unused = ALLOWED.iter().filter(|(library, place, _)| {
        !sources.iter().any(|(path, text)| path.starts_with(place) && uses(text, library))
    });
    assert_eq!(unused.collect::<Vec<_>>(), Vec::<&(&str, &str, &str)>::new());
}

#[test]
fn unsafe_code_is_only_in_the_system_call_layer() {
    let outside = sources("src").into_iter().filter(|(path, text)| {
        !path.starts_with("src/runtime/sandbox/sys")
            && path != Path::new("src/runtime/sandbox/sys.rs")
            && lines_with(text, "unsafe").next().is_some()
    });
    assert_eq!(outside.map(|(path, _)| path).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

#[test]
fn production_code_neither_unwraps_nor_stubs() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        if path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs") {
            continue;
        }
        for word in [".unwrap()", ".expect(", "todo!(", "unimplemented!(", "#[ignore"] {
            for line in
                production(&text).lines().filter(|line| line.split("//").next().is_some_and(|code| code.contains(word)))
            {
                wrong.push(format!("{}: {}", path.display(), line.trim()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn files_have_one_subject_and_fit() {
    let long = sources("src").into_iter().filter(|(_, text)| text.lines().count() > 600);
    assert_eq!(long.map(|(path, _)| path).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

#[test]
fn every_dependency_has_a_permissive_licence() {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let is_fine = |licence: &str| licence.split([' ', '/', '(', ')']).any(|word| PERMISSIVE.contains(&word));
    let wrong: Vec<String> = packages
        .iter()
        .map(|package| (package["name"].to_string(), package["license"].as_str().unwrap_or("none").to_owned()))
        .filter(|(_, licence)| !is_fine(licence))
        .map(|(name, licence)| format!("{name}: {licence}"))
        .collect();
    assert_eq!(wrong, Vec::<String>::new());
}
