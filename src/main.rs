//! The `keel` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(code) = evenkeel::runtime::sandbox::dispatch() {
        return code;
    }
    if let Some(code) = evenkeel::runtime::seatbelt::dispatch() {
        return code;
    }
    evenkeel::cli::main()
}
