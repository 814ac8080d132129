//! `keel completion`: for shells.

use clap::CommandFactory;
use clap_complete::Shell;

use super::exit::{Exit, Outcome};
use super::output::print;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  source <(keel completion bash)\n  keel completion zsh > ~/.zfunc/_keel\n  \
keel completion fish > ~/.config/fish/completions/keel.fish")]
pub struct Args {
    /// Which shell
    shell: Shell,
}

impl Args {
    /// Runs the verb.
    pub fn run(self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "keel", &mut script);
        print(&String::from_utf8_lossy(&script))?;
        Ok(Exit::Success)
    }
}
