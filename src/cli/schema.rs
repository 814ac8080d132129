//! `keel schema`: JSON Schemas of the documents, for editors and other tools.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::spec;

/// Print the JSON Schemas of deployment and service documents
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which schema; `deployment` is printed when neither a kind nor a directory is named
    kind: Option<Kind>,
    /// Write KIND.schema.json, or both files when no kind is named, into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Documents with `services:`
    Deployment,
    /// Documents with `service:`
    Service,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Deployment, Self::Service];

    /// Name of the file that holds the schema.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Deployment => "deployment.schema.json",
            Self::Service => "service.schema.json",
        }
    }

    /// The schema as text, with a line break at the end.
    ///
    /// # Errors
    /// When the schema can't be written as JSON, which would be a mistake in the types.
    pub fn text(self) -> serde_json::Result<String> {
        let schema = match self {
            Self::Deployment => spec::deployment_schema(),
            Self::Service => spec::service_schema(),
        };
        Ok(serde_json::to_string_pretty(&schema)? + "\n")
    }
}

impl Args {
    /// Runs the verb.
    ///
    /// # Errors
    /// When a file or standard output can't be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let Some(dir) = self.dir else {
            let text = self.kind.unwrap_or(Kind::Deployment).text()?;
            std::io::stdout().write_all(text.as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("can't make the directory {}", dir.display()))?;
        let kinds = self.kind.map_or(Kind::ALL.to_vec(), |kind| vec![kind]);
        for kind in kinds {
            let path = dir.join(kind.file_name());
            std::fs::write(&path, kind.text()?).with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
