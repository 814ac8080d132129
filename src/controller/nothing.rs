//! A sandbox runtime on which nothing is.

use std::path::PathBuf;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

#[cfg(target_os = "linux")]
use crate::runtime::sandbox::survey;
use crate::runtime::{
    Capabilities, CreateRequest, Listing, Progress, Result, Runtime, RuntimeError, RuntimeEvent, StopRequest, Volumes,
};
use crate::spec::{Image, RuntimeKind};
use crate::state::{ErrorKind, Instance, InstanceRef};

/// Stands for the sandbox runtime, which keeps what it has in the state directory, where there is none: it has nothing, and never
/// will have while somebody only looks.
pub struct Nothing {
    /// This program.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux has to be probed"))]
    pub program: PathBuf,
}

impl Nothing {
    fn refusal<T>(&self) -> Result<T> {
        Err(RuntimeError::new(ErrorKind::Rejected, format!("{} is only looked at", self.kind())))
    }
}

#[async_trait]
impl Runtime for Nothing {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Sandbox
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        #[cfg(target_os = "linux")]
        return Ok(survey(&self.program).await);
        #[cfg(target_os = "macos")]
        Ok(crate::runtime::seatbelt::capabilities())
    }

    async fn list(&self) -> Result<Listing> {
        Ok(Listing::default())
    }

    async fn events(&self) -> Result<BoxStream<'static, RuntimeEvent>> {
        Ok(stream::pending().boxed())
    }

    async fn ensure_image(&self, _: &Image, _: &(dyn Fn(Progress) + Send + Sync)) -> Result<()> {
        self.refusal()
    }

    async fn create(&self, _: &CreateRequest) -> Result<Instance> {
        self.refusal()
    }

    async fn start(&self, _: &InstanceRef) -> Result<Instance> {
        self.refusal()
    }

    async fn stop(&self, _: &InstanceRef, _: &StopRequest) -> Result<Option<Instance>> {
        Ok(None)
    }

    async fn remove(&self, _: &InstanceRef) -> Result<()> {
        Ok(())
    }

    async fn teardown(&self, _: &str, _: Volumes) -> Result<()> {
        Ok(())
    }

    async fn has_volumes(&self, _: &str) -> Result<bool> {
        Ok(false)
    }

    fn concurrency(&self) -> usize {
        1
    }
}
