//! Pageable host memory, as a straightforward program would use it, for benchmarks.

/// Capacity for `elements` numbers in pageable memory, in huge pages if the system has them, as NumPy
/// allocates large arrays. The driver copies from huge pages measurably faster.
pub fn ordinary_memory(elements: usize) -> Vec<f32> {
    const PAGE_BYTES: usize = 2 << 20;
    let mut memory = Vec::<f32>::with_capacity(elements);
    #[cfg(target_os = "linux")]
    {
        let start = memory.as_mut_ptr().cast::<u8>();
        let skipped = start.align_offset(PAGE_BYTES);
        let bytes = (memory.capacity() * size_of::<f32>()).saturating_sub(skipped) / PAGE_BYTES * PAGE_BYTES;
        if bytes > 0 {
            // SAFETY: the range lies within the vector's allocation, and the advice changes neither its
            // content nor its ownership.
            let advised = unsafe {
                rustix::mm::madvise(
                    start.wrapping_add(skipped).cast(),
                    bytes,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
            if let Err(error) = advised {
                tracing::debug!(%error, "no huge pages");
            }
        }
    }
    memory
}
