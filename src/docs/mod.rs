//! Pages of documentation. Operators and analysts start at the README, developers at [`development`].

pub mod formats {
    #![doc = include_str!("formats.md")]
}

pub mod output {
    #![doc = include_str!("output.md")]
}

pub mod operations {
    #![doc = include_str!("operations.md")]
}

pub mod gpu {
    #![doc = include_str!("gpu.md")]
}

pub mod beam {
    #![doc = include_str!("beam.md")]
}

pub mod protocol {
    #![doc = include_str!("protocol.md")]
}

pub mod measurements {
    #![doc = include_str!("measurements.md")]
}

pub mod development {
    #![doc = include_str!("development.md")]
}
