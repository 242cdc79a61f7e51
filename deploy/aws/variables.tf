variable "deployment" {
  description = "The deployment's name, as [autoscaler] name in the configuration. It is in every tag."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{0,30}$", var.deployment))
    error_message = "Lower-case letters, digits and dashes, at most 31 characters."
  }
}

variable "availability_zones" {
  description = "Zones of the region to launch in. The more there are, the more capacity pools."
  type        = list(string)
}

variable "cidr" {
  description = "Addresses of the runners' network; each zone gets a sixteenth of it."
  type        = string
  default     = "10.80.0.0/16"
}

variable "roles" {
  description = "Whether to make the roles as well: in the first region. They are for all regions, and their names exist once."
  type        = bool
  default     = true
}

variable "instance_profile" {
  description = "Whether machines get an instance profile of a role without permissions. Not needed; jobs can use whatever it may do."
  type        = bool
  default     = false
}

variable "game_days" {
  description = "Whether the daemon may interrupt its own spot machines through the Fault Injection Service."
  type        = bool
  default     = false
}

variable "controller_principals" {
  description = "Who may take the daemon's role: {\"Service\": [\"ec2.amazonaws.com\"]} for a daemon on EC2, or an AWS principal."
  type        = map(list(string))
  default     = { Service = ["ec2.amazonaws.com"] }
}
