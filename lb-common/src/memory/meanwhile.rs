//! What other CPUs do between two steps of a packet, as a test chooses. Decides nothing of it.

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::Arc,
};

use super::MemoryTables;
use crate::tables::Record;

/// What is done to the tables.
type Deed = Arc<dyn Fn(&MemoryTables) + Send + Sync>;

/// What other CPUs do meanwhile. Nothing, unless it is asked for.
#[derive(Clone, Default)]
pub struct Meanwhile {
    /// How many steps come before it, and what it is.
    due: RefCell<Option<(u32, Deed)>>,
    /// Flags that they take off and set, of the next record whose flags are changed.
    flags: Cell<Option<(u16, u16)>>,
}

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meanwhile").finish_non_exhaustive()
    }
}

impl Meanwhile {
    /// Has something done once, after so many steps that look at sessions and ports.
    pub fn after(&self, steps: u32, deed: impl Fn(&MemoryTables) + Send + Sync + 'static) {
        *self.due.borrow_mut() = Some((steps, Arc::new(deed)));
    }

    /// Has flags, bits of [`record_flag`](crate::tables::record_flag), taken off and set of the next record whose flags are
    /// changed, just before that.
    pub fn flags(&self, clear: u16, set: u16) {
        self.flags.set(Some((clear, set)));
    }

    /// Whether what was asked for has been done; it is not any more.
    pub fn is_done(&self) -> bool {
        self.due.take().is_none()
    }

    pub(super) fn interrupt(&self, tables: &MemoryTables) {
        let due = self.due.take();
        match due {
            Some((0, deed)) => {
                // Of its own on every CPU.
                let handover = tables.handover.get();
                deed(tables);
                tables.handover.set(handover);
            }
            Some((steps, deed)) => *self.due.borrow_mut() = Some((steps - 1, deed)),
            None => {}
        }
    }

    pub(super) fn touch(&self, record: &mut Record) {
        if let Some((clear, set)) = self.flags.take() {
            record.flags = record.flags & !clear | set;
        }
    }
}
