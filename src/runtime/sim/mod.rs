//! In memory, with virtual time and seeded faults.
