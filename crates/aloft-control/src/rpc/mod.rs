//! The services of the contract. One file per service or group of them; this one says which RPC is served by what.
//!
//! An RPC that no line here names is answered UNIMPLEMENTED with its name.

mod actions;
mod cache;
mod condition;
mod convert;
mod data;
mod domain;
mod error;
mod identity;
mod limits;
mod list;
mod place;
mod project;
mod queue;
mod run;
mod settings;
mod task;
mod tracked;
mod translator;
mod watch;
mod worker;

use connectrpc::{ConnectRpcService, Response, Router, bidi_streaming_handler_fn, handler_fn, streaming_handler_fn};

use crate::Control;

/// Bounds of one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request body on the wire, in bytes.
    pub body: usize,
    /// Largest request message once decompressed, in bytes.
    pub message: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Inline inputs and task specs with pickled defaults are the largest honest messages; the SDK offloads what is
        // larger than a few MB.
        Self { body: 16 << 20, message: 32 << 20 }
    }
}

macro_rules! routes {
    ($router:expr, $control:expr, $package:literal, $($service:literal { $($kind:ident $method:literal => $path:path),* $(,)? })*) => {{
        let mut router: Router = $router;
        $($({
            let control: Control = $control.clone();
            router = routes!(@one $kind router, concat!($package, ".", $service), $method, control, $path);
        })*)*
        router
    }};
    (@one talk $router:ident, $service:expr, $method:literal, $control:ident, $path:path) => {
        $router.route_bidi_stream($service, $method, bidi_streaming_handler_fn(move |ctx, requests| {
            let control = $control.clone();
            async move { $path(control, ctx, requests).await.map(Response::new) }
        }))
    };
    (@one call $router:ident, $service:expr, $method:literal, $control:ident, $path:path) => {
        $router.route($service, $method, handler_fn(move |_ctx, request| {
            let control = $control.clone();
            async move { $path(&control, request).await.map(Response::new) }
        }))
    };
    (@one traced $router:ident, $service:expr, $method:literal, $control:ident, $path:path) => {
        $router.route($service, $method, handler_fn(move |ctx, request| {
            let control = $control.clone();
            async move { $path(&control, &ctx, request).await.map(Response::new) }
        }))
    };
    (@one read $router:ident, $service:expr, $method:literal, $control:ident, $path:path) => {
        $router.route_idempotent($service, $method, handler_fn(move |_ctx, request| {
            let control = $control.clone();
            async move { $path(&control, request).await.map(Response::new) }
        }))
    };
    (@one stream $router:ident, $service:expr, $method:literal, $control:ident, $path:path) => {
        $router.route_server_stream($service, $method, streaming_handler_fn(move |_ctx, request| {
            let control = $control.clone();
            async move { $path(control, request).await.map(Response::new) }
        }))
    };
}

/// Every RPC that is served, on connectrpc's router.
pub fn router(control: &Control) -> Router {
    let router = routes!(Router::new(), control, "flyteidl2",
        "workflow.RunService" {
            traced "CreateRun" => run::create_run,
            call "AbortRun" => run::abort_run,
            call "AbortAction" => run::abort_action,
            call "SignalEvent" => condition::signal_event,
            read "GetRunDetails" => run::get_run_details,
            read "GetActionDetails" => run::get_action_details,
            read "GetActionData" => run::get_action_data,
            read "GetActionDataURIs" => run::get_action_data_uris,
            read "GetActionLogContext" => run::get_action_log_context,
            read "ListRuns" => list::list_runs,
            read "ListActions" => list::list_actions,
            stream "WatchRunDetails" => watch::run_details,
            stream "WatchActionDetails" => watch::action_details,
            stream "WatchRuns" => watch::runs,
            stream "WatchActions" => watch::actions,
            stream "WatchClusterEvents" => watch::cluster_events,
            stream "WatchGroups" => watch::groups,
        }
        "workflow.TrackedRunService" {
            traced "CreateRun" => tracked::create_run,
            call "ReportActions" => tracked::report_actions,
            call "AbortRun" => tracked::abort_run,
            read "GetRunDetails" => tracked::get_run_details,
            read "GetActionDetails" => tracked::get_action_details,
            read "ListRuns" => tracked::list_runs,
            read "ListActions" => tracked::list_actions,
            stream "WatchRunDetails" => tracked::watch_run_details,
            stream "WatchActionDetails" => tracked::watch_action_details,
            stream "WatchRuns" => tracked::watch_runs,
            stream "WatchActions" => tracked::watch_actions,
        }
        "workflow.RunLogsService" { stream "TailLogs" => data::tail_run_logs }
        "workflow.TranslatorService" {
            read "LiteralsToLaunchFormJson" => translator::literals_to_form,
            read "LaunchFormJsonToLiterals" => translator::form_to_literals,
            read "TaskSpecToLaunchFormJson" => translator::task_spec_to_form,
            read "JsonValuesToLiterals" => translator::values_to_literals,
        }
        "workflow.QueueService" {
            call "EnqueueAction" => actions::enqueue_queued,
            call "AbortQueuedRun" => actions::abort_queued_run,
            call "AbortQueuedAction" => actions::abort_queued_action,
        }
        "workflow.StateService" { stream "Watch" => actions::watch_state }
        "actions.ActionsService" {
            call "Enqueue" => actions::enqueue,
            call "Abort" => actions::abort,
            call "Signal" => condition::signal,
            stream "WatchForUpdates" => actions::watch_for_updates,
        }
        "cacheservice.CacheService" {
            read "Get" => cache::get,
            call "Put" => cache::put,
            call "Delete" => cache::delete,
            call "GetOrExtendReservation" => cache::reserve,
            call "ReleaseReservation" => cache::release,
        }
        "cacheservice.v2.CacheService" {
            read "Get" => cache::v2::get,
            call "Put" => cache::v2::put,
            call "Delete" => cache::v2::delete,
            call "GetOrExtendReservation" => cache::v2::reserve,
            call "ReleaseReservation" => cache::v2::release,
        }
        "task.TaskService" {
            call "DeployTask" => task::deploy,
            read "GetTaskDetails" => task::get_details,
            read "ListTasks" => task::list,
            read "ListVersions" => task::list_versions,
        }
        "project.ProjectService" {
            call "CreateProject" => project::create,
            call "UpdateProject" => project::update,
            read "GetProject" => project::get,
            call "ListProjects" => project::list,
        }
        "org.DomainService" {
            read "ListDomains" => domain::list,
            read "GetDomain" => domain::get,
            call "CreateDomain" => domain::create,
            call "UpdateDomain" => domain::update,
            call "DeleteDomain" => domain::delete,
        }
        "settings.SettingsService" {
            read "GetSettings" => settings::get,
            read "GetSettingsForEdit" => settings::get_for_edit,
            traced "CreateSettings" => settings::create,
            traced "UpdateSettings" => settings::update,
        }
        "dataproxy.DataProxyService" {
            call "CreateUploadLocation" => data::create_upload_location,
            call "UploadInputs" => data::upload_inputs,
            call "CreateDownloadLink" => data::create_download_link,
            read "GetActionData" => data::get_action_data,
            stream "TailLogs" => data::tail_logs,
        }
        "cluster.ClusterService" { call "SelectCluster" => identity::select_cluster }
        "imagebuilder.ImageService" { read "GetImage" => data::get_image }
        "auth.AuthMetadataService" {
            read "GetOAuth2Metadata" => identity::oauth2_metadata,
            read "GetPublicClientConfig" => identity::public_client_config,
        }
        "auth.IdentityService" { call "UserInfo" => identity::user_info }
    );
    routes!(router, control, "aloft.v1",
        "QueueService" {
            call "CreateQueue" => queue::create,
            call "UpdateQueue" => queue::update,
            call "UpdateQueueState" => queue::update_state,
            call "DeleteQueue" => queue::delete,
            call "UndeleteQueue" => queue::undelete,
            read "GetQueue" => queue::get,
            read "ListQueues" => queue::list,
        }
        "LimitsService" {
            call "UpdateProjectLimits" => limits::update,
            read "GetProjectLimits" => limits::get,
            read "ListProjectLimits" => limits::list,
        }
        "WorkerService" {
            talk "Work" => worker::work,
            traced "Report" => worker::report,
            read "ListWorkers" => worker::list,
        }
    )
}

/// The services as one axum-compatible service.
pub fn service(router: Router, limits: Limits) -> ConnectRpcService {
    // The default's third bound stays: the memory of what a message holds, which may be a hundred times its size.
    let bounds =
        connectrpc::Limits::default().with_max_request_body_size(limits.body).with_max_message_size(limits.message);
    ConnectRpcService::new(router).with_limits(bounds)
}
