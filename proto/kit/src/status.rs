//! The one place where a [`Refusal`] becomes a gRPC status and back: exactly
//! one `google.rpc.ErrorInfo` (AIP-193), and RetryInfo where waiting helps.

use chancery_types::reason::Code;
use chancery_types::{Reason, Refusal, Retry};
use std::collections::HashMap;
use std::time::Duration;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

/// `domain` of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "chancery";

/// How long a caller should wait after a refusal that may pass later, unless the refusal says.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The gRPC status of a refusal.
pub fn to_status(refusal: &Refusal) -> Status {
    let reason = refusal.reason;
    let mut details = ErrorDetails::new();
    details.set_error_info(
        reason.as_str(),
        DOMAIN,
        HashMap::from([
            ("fault".to_owned(), reason.fault().as_str().to_owned()),
            ("retry".to_owned(), reason.retry().as_str().to_owned()),
        ]),
    );
    if reason.retry() == Retry::Later {
        details.set_retry_info(Some(refusal.retry_after.unwrap_or(RETRY_AFTER)));
    }
    Status::with_error_details(code(reason.code()), refusal.message.as_ref(), details)
}

/// What a server meant by a status: its reason, or the nearest one for a
/// status that carries none (a proxy's, or tonic's own).
pub fn from_status(status: &Status) -> Refusal {
    let known = status
        .get_details_error_info()
        .filter(|info| info.domain == DOMAIN)
        .and_then(|info| Reason::from_wire(&info.reason));
    let reason = known.unwrap_or(match status.code() {
        tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown => Reason::PeerUnreachable,
        tonic::Code::DeadlineExceeded => Reason::DeadlineExceeded,
        tonic::Code::ResourceExhausted => Reason::Overloaded,
        tonic::Code::Unauthenticated => Reason::NotAuthenticated,
        tonic::Code::Unimplemented => Reason::Unsupported,
        tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Reason::InvalidField,
        _ => Reason::PeerMisbehaved,
    });
    let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    Refusal { reason, message: status.message().to_owned().into(), retry_after }
}

const fn code(code: Code) -> tonic::Code {
    match code {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::Unauthenticated => tonic::Code::Unauthenticated,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Aborted => tonic::Code::Aborted,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::Unimplemented => tonic::Code::Unimplemented,
        Code::Internal => tonic::Code::Internal,
    }
}

/// A call under a deadline. That the other side cannot be reached or does not
/// answer in time becomes `unreachable`.
///
/// # Errors
/// The refusal.
pub async fn call_within<T>(
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    unreachable: Reason,
    message: &'static str,
) -> Result<T, Refusal> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(match from_status(&status) {
            refusal if refusal.reason == Reason::PeerUnreachable => Refusal::new(unreachable, message),
            refusal => refusal,
        }),
        Err(_) => Err(Refusal::new(unreachable, message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in Reason::ALL {
            let refusal = Refusal::new(*reason, "what to do");
            let status = to_status(&refusal);
            let later = (reason.retry() == Retry::Later).then_some(RETRY_AFTER);
            assert_eq!(from_status(&status), Refusal { retry_after: later, ..refusal });
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.metadata["fault"], reason.fault().as_str());
            assert_eq!(status.get_details_retry_info().is_some(), reason.retry() == Retry::Later);
        }
    }

    #[test]
    fn a_refusal_that_knows_when_says_so() {
        let refusal = Refusal::new(Reason::Overloaded, "soon").retry_after(Duration::from_millis(70));
        assert_eq!(from_status(&to_status(&refusal)), refusal);
    }

    #[test]
    fn a_foreign_status_gets_the_nearest_reason() {
        assert_eq!(from_status(&Status::unavailable("gone")).reason, Reason::PeerUnreachable);
        assert_eq!(from_status(&Status::internal("?")).reason, Reason::PeerMisbehaved);
    }
}
