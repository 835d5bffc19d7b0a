//! What is done to the maps, by whom, and what came of it.

use sheave_abi::{BackendRow, FrontendKey, FrontendRow, SlotKey, SlotRow, TargetRow};
use sheave_model::ServiceKey;
use thiserror::Error;

/// One write of one row. All are idempotent: doing one twice is doing it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOp {
    /// Makes a target known. Never done to one that is known, so its counter isn't touched.
    PutTarget {
        /// Its id.
        id: u32,
        /// Who it is; no connections yet.
        row: TargetRow,
    },
    /// Makes a backend, or changes its flags.
    PutBackend {
        /// Its id.
        id: u32,
        /// Where it is.
        row: BackendRow,
    },
    /// Puts a backend into a slot.
    PutSlot {
        /// Which slot.
        key: SlotKey,
        /// Which backend.
        row: SlotRow,
    },
    /// Points a frontend at a target's set: the commit.
    PutFrontend {
        /// The frontend.
        key: FrontendKey,
        /// Where it leads.
        row: FrontendRow,
    },
    /// Removes a frontend.
    DeleteFrontend {
        /// The frontend.
        key: FrontendKey,
    },
    /// Removes a slot that no frontend has named for a grace.
    DeleteSlot {
        /// The slot.
        key: SlotKey,
    },
    /// Removes a backend that no slot names.
    DeleteBackend {
        /// Its id.
        id: u32,
        /// The target it belongs to.
        target: u32,
    },
    /// Removes a target that has neither slots nor backends.
    DeleteTarget {
        /// Its id.
        id: u32,
    },
}

/// Why a row could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// The map holds as many rows as it was made for.
    #[error("map `{map}` is full ({capacity} rows)")]
    Full {
        /// Its name.
        map: &'static str,
        /// How many rows it was made for.
        capacity: u32,
    },
    /// Anything else; ENOMEM most likely.
    #[error("map `{map}`: system error {errno}")]
    Os {
        /// The map's name.
        map: &'static str,
        /// What the kernel said.
        errno: i32,
    },
}

/// The maps in the kernel, or something that stands in for them.
pub trait Maps {
    /// Carries out one operation. Deleting what isn't there succeeds.
    ///
    /// # Errors
    /// When the row is not as the operation wants it; the map is then as it was before.
    fn apply(&mut self, op: &MapOp) -> Result<(), MapError>;
}

/// Everything found in pinned maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Rows of `targets`.
    pub targets: Vec<(u32, TargetRow)>,
    /// Rows of `frontends`.
    pub frontends: Vec<(FrontendKey, FrontendRow)>,
    /// Rows of `slots`.
    pub slots: Vec<(SlotKey, SlotRow)>,
    /// Rows of `backends`.
    pub backends: Vec<(u32, BackendRow)>,
}

/// How many rows each map holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of `targets`.
    pub targets: usize,
    /// Of `frontends`.
    pub frontends: usize,
    /// Of `slots`.
    pub slots: usize,
    /// Of `backends`.
    pub backends: usize,
}

/// What an update or a timeout did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations that succeeded.
    pub writes: usize,
    /// What failed now; each is tried again by [`crate::Reconciler::handle_timeout`]. Worth one log line each.
    pub failures: Vec<Failure>,
}

/// A Service port, or a frontend that is no longer one's, whose rows are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose rows; None for those of a Service that is gone.
    pub service: Option<ServiceKey>,
    /// The first error; what follows it was not tried.
    pub error: MapError,
    /// How many times in a row it has failed.
    pub attempts: u32,
}
