//! The data plane: everything that touches users' bytes, and everything that runs users' code.
//!
//! | module | what it is |
//! |---|---|
//! | [`worker`] | leases attempts, admits, starts, watches and reports them; finds them again after a restart |
//! | [`admission`] | which waiting attempts may start: a pure decision |
//! | [`needs`] | what a task asks of the machine |
//! | [`process`] | an attempt as a process: the shim that keeps it, the zygote that forks it |
//! | [`checkpoint`] | which checkpoint an attempt goes on from |
//! | [`data`] | users' data over the object store: the [`aloft_plane::DataPlane`] |
//! | [`env`] | Python environments: found, made, built from images |
//! | [`inline`] | tasks that need no process, such as sleeping |
//! | [`link`] | a worker's line to a control plane elsewhere |
//! | [`logs`] | the log of an attempt, written and followed |
//! | [`seam`] | what the above needs from the rest: environments, native tasks, results |
//! | [`target`] | what of a task runs as a process |
//! | [`translate`] | literals to and from JSON |

pub mod admission;
pub mod checkpoint;
mod clock;
pub mod data;
pub mod env;
pub mod inline;
pub mod link;
pub mod logs;
pub mod needs;
pub mod process;
pub mod seam;
pub mod target;
pub mod translate;
pub mod worker;
