//! Host memory as a straightforward program has it, for what sluice is compared with.

/// Room for `elements` numbers in ordinary memory, in large pages where the system has them: what
/// NumPy does for large arrays. The driver copies from them measurably faster.
pub fn ordinary_memory(elements: usize) -> Vec<f32> {
    const PAGE_BYTES: usize = 2 << 20;
    let mut memory = Vec::<f32>::with_capacity(elements);
    #[cfg(target_os = "linux")]
    {
        let start = memory.as_mut_ptr().cast::<u8>();
        let skipped = start.align_offset(PAGE_BYTES);
        let bytes = (memory.capacity() * size_of::<f32>()).saturating_sub(skipped) / PAGE_BYTES * PAGE_BYTES;
        if bytes > 0 {
            // SAFETY: the range lies within the vector's own memory, and the advice changes neither
            // its content nor who may use it.
            let advised = unsafe {
                rustix::mm::madvise(
                    start.wrapping_add(skipped).cast(),
                    bytes,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
            if let Err(error) = advised {
                tracing::debug!(%error, "no large pages");
            }
        }
    }
    memory
}
