# A deployment's part of a Google Cloud project: network, the daemon's role and account, the runners' account without any
# role. Machines without external addresses reach out through Cloud NAT.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = { source = "hashicorp/google", version = ">= 6.0" }
  }
}

variable "project" {
  description = "The project's id."
  type        = string
}

variable "deployment" {
  description = "The deployment's name, as [autoscaler] name in the configuration, or a short form of it: it names what is made here."
  type        = string
  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$", var.deployment))
    error_message = "A lower-case letter, then letters, digits and dashes, at most 12 characters: an account's name has 30."
  }
}

variable "regions" {
  description = "Regions to launch in, each with the addresses of its subnetwork."
  type        = map(string)
  default     = { "us-central1" = "10.90.0.0/20" }
}

locals {
  name = "autoscaler-${var.deployment}"
  role = yamldecode(file("${path.module}/role.yaml"))
}

# ------------------------------------------------------------------------------------------------ network

resource "google_compute_network" "runners" {
  project                 = var.project
  name                    = local.name
  auto_create_subnetworks = false
}

resource "google_compute_subnetwork" "runners" {
  for_each                 = var.regions
  project                  = var.project
  name                     = local.name
  region                   = each.key
  network                  = google_compute_network.runners.id
  ip_cidr_range            = each.value
  private_ip_google_access = true
}

resource "google_compute_router" "runners" {
  for_each = var.regions
  project  = var.project
  name     = local.name
  region   = each.key
  network  = google_compute_network.runners.id
}

resource "google_compute_router_nat" "runners" {
  for_each                           = var.regions
  project                            = var.project
  name                               = local.name
  region                             = each.key
  router                             = google_compute_router.runners[each.key].name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"
}

# A network has no rule that lets anybody in unless one is made: none is. Nobody calls a runner.

# ------------------------------------------------------------------------------------------------ accounts

resource "google_project_iam_custom_role" "controller" {
  project     = var.project
  role_id     = "autoscaler_${replace(var.deployment, "-", "_")}"
  title       = local.role.title
  description = local.role.description
  permissions = local.role.includedPermissions
}

resource "google_service_account" "controller" {
  project      = var.project
  account_id   = local.name
  display_name = "CI runner autoscaler"
}

resource "google_project_iam_member" "controller" {
  project = var.project
  role    = google_project_iam_custom_role.controller.id
  member  = google_service_account.controller.member
}

# Machines need an account so that Google signs their identity; it has no role, and must get none: jobs can use it.
resource "google_service_account" "runner" {
  project      = var.project
  account_id   = "${local.name}-runner"
  display_name = "CI runners (no roles, on purpose)"
}

resource "google_service_account_iam_member" "controller_uses_runner" {
  service_account_id = google_service_account.runner.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.controller.member
}

output "configuration" {
  description = "What the daemon's configuration says of this project."
  value = {
    project         = var.project
    regions         = keys(var.regions)
    networks        = { for region, subnet in google_compute_subnetwork.runners : region => { subnetwork = subnet.name } }
    service_account = google_service_account.runner.email
  }
}
