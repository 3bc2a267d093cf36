//! What this process holds in memory stays there: no core dump is written, and no other
//! process of the same user reads it. Swap is the system's; see `deploy/README.md`.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Forbids core dumps, for children of this process as well, and attaching to it.
///
/// # Errors
/// The system refuses.
pub(crate) fn keep() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not hold for dumps that are piped to a program (core(5)), this does.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
