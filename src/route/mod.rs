//! Where a request goes: read policy, fences, splits and joins, what may be re-sent. Pure.
