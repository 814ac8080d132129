//! Output of instances on disk, in the form of the container runtime interface: written by their supervisors in parts of
//! bounded size, and read by everybody else.

mod backwards;
pub mod cri;
pub mod logfile;
pub mod loglines;
pub mod logreader;
mod logtail;

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::io::OutputStream;
use crate::spec::ServiceSpec;
use cri::Framer;
use logfile::LogFile;

/// Size of one file of kept output: the kubelet's containerLogMaxSize.
const LOG_FILE_BYTES: u64 = 10 << 20;
/// Number of files of kept output: the kubelet's containerLogMaxFiles.
const LOG_FILES: u32 = 5;
/// Smallest size of one file of kept output: some lines of the longest kind.
const SMALLEST_LOG_FILE: u64 = 64 << 10;
/// Fewest bytes of output that an instance may be allowed.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "the sandbox runtime of Linux alone tells smaller ones")
)]
pub const LEAST_LOG_BYTES: u64 = SMALLEST_LOG_FILE * LOG_FILES as u64;

/// Bounds of the kept output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBounds {
    /// Most bytes of one file.
    pub file_bytes: u64,
    /// Most files.
    pub files: u32,
}

impl LogBounds {
    /// What a spec asks for.
    pub fn of(spec: &ServiceSpec) -> Self {
        let file_bytes = match &spec.logs {
            Some(logs) if logs.max_size_bytes.is_some() => logs.max_size_bytes() / u64::from(LOG_FILES),
            _ => LOG_FILE_BYTES,
        };
        Self { file_bytes: file_bytes.max(SMALLEST_LOG_FILE), files: LOG_FILES }
    }
}

/// Appends lines, after a word about what was lost before.
pub fn append(log: &mut LogFile, lines: &[u8]) {
    if !lines.is_empty() && log.has_lost() {
        let text = format!("keel: {} bytes of output could not be written\n", log.take_lost());
        let mut told = Vec::new();
        Framer::new(OutputStream::Stderr).push(Utc::now(), text.as_bytes(), &mut told);
        log.append(&told);
    }
    log.append(lines);
}
