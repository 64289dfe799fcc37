//! stub
use std::path::PathBuf;
#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    file: PathBuf,
}
impl Import {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let _ = self.file;
        Ok(())
    }
}
