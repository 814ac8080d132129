//! Mounting into instances that run.

use async_trait::async_trait;

use super::Result;
use crate::state::{InstanceRef, LateMount};

/// Mounts paths of the machine into instances that run already.
#[async_trait]
pub trait LateMounts: Send + Sync {
    /// Whether this could be mounted into an instance here, as far as can be told without one. Changes nothing.
    ///
    /// # Errors
    /// `Unsupported` with what the machine lacks; `Rejected` for a source that may not be shown; `Failed` for one that
    /// is missing.
    async fn check_mounts(&self, mounts: &[LateMount]) -> Result<()>;

    /// Mounts all of them into a running instance, outer ones before inner ones. A target that is missing is made. They
    /// go with the instance, and show nowhere else. Repeating it mounts them once more, over the same.
    ///
    /// # Errors
    /// As [`LateMounts::check_mounts`]; `Unsupported` where the instance as it was made does not allow a target, and nothing
    /// was changed in it; `NotFound` when the instance does not exist; `Rejected` when it does not run or a target can't be
    /// had in it; some of the mounts may be there then.
    async fn mount(&self, instance: &InstanceRef, mounts: &[LateMount]) -> Result<()>;
}
