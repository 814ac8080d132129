//! What specs are taken, and what is said about those that are not.
//!
//! `valid/*.yaml` must be free of problems. `invalid/*.yaml` must give exactly the lines of the
//! `.txt` file beside; `UPDATE_EXPECTED=1 cargo test --test specs` writes those files anew.

mod bounds;
mod merging;
mod positions;
mod random;
mod revisions;

use std::path::{Path, PathBuf};

use evenkeel::spec::{self, ParsedFile, merge, parse, parse_bytes};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/specs").join(name)
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds no files", folder.display());
    files
}

/// All problems of one file, inside of its documents and between them, one line each.
fn problems(path: &Path) -> String {
    let name = PathBuf::from(path.file_name().unwrap());
    let files = [(name, parse_bytes(&std::fs::read(path).unwrap()))];
    spec::problems(&files, &merge(&files)).iter().map(|(_, problem)| format!("{problem}\n")).collect()
}

#[test]
fn valid_specs_have_no_problems() {
    for path in yaml_files(&folder("valid")) {
        assert_eq!(problems(&path), "", "{}", path.display());
        let file = parse(&std::fs::read_to_string(&path).unwrap());
        assert!(!file.documents.is_empty(), "{} declares nothing", path.display());
    }
}

#[test]
fn invalid_specs_get_exactly_the_expected_problems() {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut differing = Vec::new();
    for path in yaml_files(&folder("invalid")) {
        let expected = path.with_extension("txt");
        let found = problems(&path);
        assert_ne!(found, "", "{} has no problems", path.display());
        if update {
            std::fs::write(&expected, &found).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != found {
            differing.push(format!("{}:\n{found}", path.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn a_text_without_documents_declares_nothing_and_is_no_problem() {
    for text in ["", "\n", "# only a comment\n", "---\n", "---\n---\n", "\u{feff}# mark\n", "~\n"] {
        assert_eq!(parse(text), ParsedFile::default(), "{text:?}");
    }
}
