//! Waiting until every packet in flight is done with what the maps held before.

use crate::dataplane::DataplaneError;

/// `MEMBARRIER_CMD_GLOBAL` of <https://man7.org/linux/man-pages/man2/membarrier.2.html>.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Returns after an RCU grace period: XDP programs run in read-side critical sections, and
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is `synchronize_rcu()`
/// (<https://github.com/torvalds/linux/blob/v6.18/kernel/sched/membarrier.c>).
/// Where the kernel has no such call, or runs with `nohz_full`, it waits for longer than any packet
/// takes.
///
/// # Errors
/// None so far.
pub fn wait() -> Result<(), DataplaneError> {
    // SAFETY: takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 {
        return Ok(());
    }
    // With nohz_full CPUs the kernel refuses; no packet is under way for as long as this.
    std::thread::sleep(std::time::Duration::from_millis(100));
    Ok(())
}
